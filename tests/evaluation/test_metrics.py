"""Confusion and accuracy on a case counted by hand; errors and p against their formulas."""

from fractions import Fraction
from itertools import product
from math import comb

import numpy as np
import pytest
import torch

from sjepa_fast.evaluation.metrics import (
    accuracy,
    confusion_matrix,
    mcnemar_p,
    per_class_accuracy,
    standard_error,
)


def test_counts() -> None:
    labels = torch.tensor([0, 0, 1, 1, 1])
    guess = torch.tensor([0, 1, 1, 1, 0])
    matrix = confusion_matrix(guess, labels, 3)
    assert matrix.tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert accuracy(guess, labels) == 60.0
    assert per_class_accuracy(matrix) == [50.0, 200 / 3, None]


def test_standard_error_is_that_of_the_mean_of_coins() -> None:
    assert standard_error(80, 464) == pytest.approx(1.857, abs=5e-4)
    right = np.repeat([100.0, 0.0], [30, 10])
    assert standard_error(75, 40) == pytest.approx(right.std() / np.sqrt(40))
    assert standard_error(100, 5) == standard_error(0, 5) == 0


@pytest.mark.parametrize(("first", "second"), [(1, 9), (9, 1), (0, 6), (4, 4), (0, 0), (3, 4)])
def test_mcnemar_is_the_share_of_coin_tosses_at_least_as_uneven(first: int, second: int) -> None:
    """Every sequence of as many tosses as clips that one alone gets right, counted."""
    tosses = list(product((0, 1), repeat=first + second))
    uneven = [abs(2 * sum(t) - len(t)) >= abs(first - second) for t in tosses]
    assert mcnemar_p(first, second) == pytest.approx(sum(uneven) / len(tosses))


def test_mcnemar_is_exact_for_many_clips() -> None:
    assert mcnemar_p(1, 9) == 22 / 1024
    tail = sum(comb(1500, k) for k in range(720 + 1))
    assert mcnemar_p(720, 780) == float(Fraction(2 * tail, 2**1500))
    assert mcnemar_p(0, 5000) == 0.0, "below the smallest number"
