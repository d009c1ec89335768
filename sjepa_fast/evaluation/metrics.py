"""Scores of predicted labels."""

from __future__ import annotations

import torch
from torch import Tensor


def accuracy(predicted_Q: Tensor, labels_Q: Tensor) -> float:
    """Share of right predictions, in percent."""
    return 100 * (predicted_Q == labels_Q).double().mean().item()


def confusion_matrix(predicted_Q: Tensor, labels_Q: Tensor, classes: int) -> Tensor:
    """Counts (C, C): row is the true label, column the predicted one."""
    pairs = labels_Q * classes + predicted_Q
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)


def per_class_accuracy(matrix_CC: Tensor) -> list[float | None]:
    """Percent right of each true class; None for a class without test clips."""
    totals = matrix_CC.sum(dim=1).tolist()
    right = matrix_CC.diagonal().tolist()
    return [100 * r / n if n else None for r, n in zip(right, totals, strict=True)]
