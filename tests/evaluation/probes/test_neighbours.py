"""Nearest neighbours against a direct count."""

import numpy as np
import pytest
import torch

from sjepa_fast.evaluation.probes.neighbours import (
    center_features,
    half_whiten_features,
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


@pytest.mark.parametrize("width", [6, 90])
def test_half_whitening_by_hand(width: int) -> None:
    """Against the SVD: fewer features than rows, and more; one repeats another, one is constant."""
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(40, width)), rng.normal(size=(25, width))
    train, test = (x * np.geomspace(10, 0.1, width) + 3 for x in (train, test))
    for x in (train, test):
        x[:, 2], x[:, 3] = x[:, 1], 7
    mean = train.mean(axis=0)
    _, singular, axes = np.linalg.svd(train - mean, full_matrices=False)
    rank = min(width - 2, 39)
    deviation = singular[:rank] / np.sqrt(39)
    wanted = [(x - mean) @ axes[:rank].T / np.sqrt(deviation) for x in (train, test)]
    ours = half_whiten_features(*(torch.from_numpy(x) for x in (train, test)))
    assert ours[0].shape == (40, rank) and ours[1].shape == (25, rank)
    # An axis has no direction: products are compared, of which cosines are made.
    for a, b in ((0, 0), (1, 0), (1, 1)):
        found = (ours[a] @ ours[b].T).numpy()
        np.testing.assert_allclose(found, wanted[a] @ wanted[b].T, rtol=1e-3, atol=1e-3)
    spread = ours[0].double().std(dim=0).flip(0).numpy()
    np.testing.assert_allclose(spread, np.sqrt(deviation), rtol=1e-4)


def test_half_whitening_does_not_look_at_test_rows_and_ends_well_without_variation() -> None:
    train = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    first, one = half_whiten_features(train, train[:4] + 1)
    again, many = half_whiten_features(train, torch.cat([train[:4] + 1, 1e3 * train]))
    assert torch.equal(first, again)
    torch.testing.assert_close(one, many[:4])
    still, rows = half_whiten_features(torch.ones(5, 3), torch.randn(2, 3))
    assert still.shape == (5, 0) and rows.shape == (2, 0)
    assert len(knn_predict(still, torch.arange(5), rows)[1]) == 2
    train[3, 4], train[5, 6] = float("nan"), float("inf")
    assert all(torch.isfinite(x).all() for x in half_whiten_features(train, train))
