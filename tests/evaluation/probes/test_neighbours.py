"""Nearest neighbours against a direct count."""

import numpy as np
import torch

from sjepa_fast.evaluation.probes.neighbours import (
    center_features,
    knn_predict,
    standardize_features,
)


def test_knn_equals_a_direct_vote() -> None:
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(60, 5)), rng.normal(size=(33, 5))
    labels = rng.integers(0, 4, size=60)
    ours = knn_predict(
        torch.from_numpy(train), torch.from_numpy(labels), torch.from_numpy(test), (1, 5), chunk=7
    )
    unit = train / np.linalg.norm(train, axis=1, keepdims=True)
    similarity = (test / np.linalg.norm(test, axis=1, keepdims=True)) @ unit.T
    for k in (1, 5):
        for row in range(33):
            near = np.argsort(-similarity[row])[:k]
            votes = np.bincount(labels[near], minlength=4)
            sums = np.bincount(labels[near], weights=similarity[row][near], minlength=4)
            best = max(range(4), key=lambda c: (votes[c], sums[c]))
            assert ours[k][row].item() == best


def test_more_neighbours_than_rows() -> None:
    train = torch.eye(3)
    guess = knn_predict(train, torch.tensor([0, 1, 1]), train, (10,))
    assert guess[10].tolist() == [1, 1, 1]


def test_cosine_ignores_length() -> None:
    train = torch.tensor([[1.0, 0.0], [0.0, 100.0]])
    guess = knn_predict(train, torch.tensor([0, 1]), torch.tensor([[500.0, 1.0], [0.1, 0.2]]))
    assert guess[1].tolist() == [0, 1]


def test_scaling_uses_training_statistics_only() -> None:
    train, test = torch.randn(50, 3) * 5 + 2, torch.randn(20, 3)
    train[:, 2] = 7.0
    centered, shifted = center_features(train, test)
    torch.testing.assert_close(shifted, test - train.mean(dim=0))
    assert centered.mean(dim=0).abs().max() < 1e-5
    scaled, _ = standardize_features(train, test)
    torch.testing.assert_close(scaled[:, :2].std(dim=0), torch.ones(2))
    assert torch.isfinite(scaled).all() and (scaled[:, 2] == 0).all()
