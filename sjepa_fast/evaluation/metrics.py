# SPDX-License-Identifier: Apache-2.0
"""Scores of predicted labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def accuracy(predicted_Q: Tensor, labels_Q: Tensor) -> float:
    """Share of right predictions, in percent."""
    return 100 * (predicted_Q == labels_Q).double().mean().item()


def standard_error(percent: float, clips: int) -> float:
    """Binomial standard error of an accuracy of so many test clips, in points."""
    return math.sqrt(percent * (100 - percent) / clips)


def mcnemar_p(first_only: int, second_only: int) -> float:
    """Exact two-sided p of McNemar's test that two classifiers are right equally often.

    Only clips that one of them alone gets right count: without a difference each of the n is the
    first one's with probability 1/2. p is twice the smaller tail of that binomial, at most 1.
    """
    n, tail, term = first_only + second_only, 1, 1
    for k in range(min(first_only, second_only)):
        term = term * (n - k) // (k + 1)
        tail += term
    # Whole numbers are divided exactly, however large.
    return min(1.0, 2 * tail / (1 << n))


def confusion_matrix(predicted_Q: Tensor, labels_Q: Tensor, classes: int) -> Tensor:
    """Counts (C, C): row is the true label, column the predicted one."""
    pairs = labels_Q * classes + predicted_Q
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)


def per_class_accuracy(matrix_CC: Tensor) -> list[float | None]:
    """Percent right of each true class; None for a class without test clips."""
    totals = matrix_CC.sum(dim=1).tolist()
    right = matrix_CC.diagonal().tolist()
    return [100 * r / n if n else None for r, n in zip(right, totals, strict=True)]
