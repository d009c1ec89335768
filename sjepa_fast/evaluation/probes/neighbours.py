# SPDX-License-Identifier: Apache-2.0
"""Exact cosine nearest neighbours, and scaling of features by training statistics.

Shapes: N training rows, Q test rows, D features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot


def center_features(train_ND: Tensor, test_QD: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract the training mean from both parts."""
    mean = train_ND.mean(dim=0)
    return train_ND - mean, test_QD - mean


def standardize_features(train_ND: Tensor, test_QD: Tensor) -> tuple[Tensor, Tensor]:
    """Give every feature zero mean and unit deviation over the training part.

    Features that do not vary in training are left at zero deviation, not amplified.
    """
    train, test = center_features(train_ND, test_QD)
    deviation = train.std(dim=0)
    scale = torch.where(deviation > 1e-8, deviation, 1.0)
    return train / scale, test / scale


def half_whiten_features(train_ND: Tensor, test_QD: Tensor) -> tuple[Tensor, Tensor]:
    """Turn both parts onto the principal axes of the training part, half-whitened.

    Each axis is divided by the root of its deviation s over the training rows, which is left with
    the deviation sqrt(s). With rows @ axes = U S, s = S / sqrt(N - 1). Axes along which the
    training rows do not vary are left out, so at most min(N - 1, D) columns remain, float32.
    """
    centered = center_features(train_ND, test_QD)
    # The decomposition raises where a number is not finite, and a score must not end a run.
    train, test = (torch.nan_to_num(x.double(), 0, 0, 0) for x in centered)
    # Of the two products that have the axes, the smaller.
    wide = train.shape[1] > len(train)
    square, axes = torch.linalg.eigh(train @ train.T if wide else train.T @ train)
    # What is below is rounding of float32 features; along such axes test rows would be amplified.
    kept = square > square[-1] * 1e-12
    singular, axes = square[kept].sqrt(), axes[:, kept]
    if wide:
        axes = train.T @ axes / singular
    axes = axes / (singular / math.sqrt(max(1, len(train) - 1))).sqrt()
    return (train @ axes).float(), (test @ axes).float()


def knn_predict(
    train_ND: Tensor,
    train_labels_N: Tensor,
    test_QD: Tensor,
    ks: Sequence[int] = (1,),
    chunk: int = 4096,
) -> dict[int, Tensor]:
    """Predict labels by the majority of the k most similar training rows (cosine).

    Ties between classes go to the class with the larger sum of similarities. All `ks` are answered
    in one pass, `chunk` test rows at a time; returns the labels (Q,) for each. Source: method 6.5
    (STARS), features L2-normalised.
    """
    bank = normalize(train_ND, dim=1)
    most = min(max(ks), len(bank))
    classes = int(train_labels_N.max()) + 1
    found: dict[int, list[Tensor]] = {k: [] for k in ks}
    for rows in torch.split(test_QD, chunk):
        similarity, index = (normalize(rows, dim=1) @ bank.T).topk(most, dim=1)
        votes = one_hot(train_labels_N[index], classes).to(similarity.dtype)
        for k in ks:
            near = votes[:, :k]
            # A vote outweighs any sum of similarities, which only settles ties.
            score = near.sum(1) + (near * similarity[:, :k, None]).sum(1) / (4 * k)
            found[k].append(score.argmax(dim=1))
    return {k: torch.cat(parts) for k, parts in found.items()}
