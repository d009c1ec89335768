"""Retrieval against a direct computation with NumPy."""

import numpy as np
import torch

from sjepa_fast.evaluation.probes.ranking import retrieve


def test_average_precision_by_definition() -> None:
    rng = np.random.default_rng(0)
    gallery, query = rng.normal(size=(40, 6)), rng.normal(size=(15, 6))
    labels, wanted = rng.integers(0, 3, size=40), rng.integers(0, 4, size=15)
    first, precision = retrieve(
        *(torch.from_numpy(x) for x in (gallery, labels, query, wanted)), chunk=4
    )
    unit = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    for row in range(15):
        order = np.argsort(-(unit @ query[row]))
        hits = [rank for rank, index in enumerate(order, 1) if labels[index] == wanted[row]]
        assert first[row].item() == labels[order[0]]
        if not hits:
            assert wanted[row] == 3 and precision[row].isnan()
            continue
        expected = np.mean([(number + 1) / rank for number, rank in enumerate(hits)])
        np.testing.assert_allclose(precision[row].item(), expected, rtol=1e-12)


def test_a_perfect_ranking_has_precision_one() -> None:
    x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    labels = torch.tensor([0, 0, 1])
    first, precision = retrieve(x, labels, x, labels)
    assert torch.equal(first, labels) and torch.equal(precision, torch.ones(3, dtype=torch.float64))
