"""Confusion and accuracy on a case counted by hand."""

import torch

from sjepa_fast.evaluation.metrics import accuracy, confusion_matrix, per_class_accuracy


def test_counts() -> None:
    labels = torch.tensor([0, 0, 1, 1, 1])
    guess = torch.tensor([0, 1, 1, 1, 0])
    matrix = confusion_matrix(guess, labels, 3)
    assert matrix.tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert accuracy(guess, labels) == 60.0
    assert per_class_accuracy(matrix) == [50.0, 200 / 3, None]
