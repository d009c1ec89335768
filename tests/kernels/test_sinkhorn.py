"""Sinkhorn's center against the published algorithm, in every implementation that runs here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sjepa_kernels import (
    centered_crop_cross_entropy,
    centered_softmax_cross_entropy,
    sinkhorn_center,
    soft_cross_entropy,
)
from tests.kernels.cases import Place, assert_within_budget
from tests.kernels.ops.sinkhorn_center import in_logarithms, published

HAS_CPP = True

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# B, K: one number, one sample, vector tails, several tiles of both.
SHAPES = [(1, 1), (1, 9), (18, 40), (33, 7), (5, 1100)]


def logits(place: Place, *shape: int, spread: float = 0.3) -> Tensor:
    return (spread * torch.randn(shape)).to(place.device)


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_probabilities_are_the_published_ones(
    place: Place, shape: tuple[int, int], dtype: torch.dtype, iterations: int
) -> None:
    teacher = logits(place, *shape).to(dtype)
    center = sinkhorn_center(teacher, 0.05, iterations, impl=place.impl)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert center.shape == shape[1:] and center.dtype == wide
    truth = published(teacher.double(), 0.05, iterations)
    ours = torch.softmax((teacher.to(wide) - center) / 0.05, 1)
    budget = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(ours.double(), truth, rtol=budget, atol=0)
    args = teacher, 0.05, iterations
    eager = sinkhorn_center(*args, impl="torch")
    true = in_logarithms(teacher.double(), *args[1:])
    # Where a center is about 0, the logits are what was rounded.
    extra = 4 * torch.finfo(wide).eps * shape[1] ** 0.5 / max(float(true.norm()), 1e-30)
    assert_within_budget(center, eager, true, "center", extra)


@pytest.mark.parametrize("width", [1, 7, 8, 19, 64, 130])
def test_every_vector_width(lanes: int, width: int) -> None:
    teacher = logits(Place("cpu", "cpu"), 67, width)
    center = sinkhorn_center(teacher, 0.06, impl="cpu")
    truth = in_logarithms(teacher.double(), 0.06, 3)
    torch.testing.assert_close(center.double(), truth, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("width", "iterations"), [(40, 1), (40, 3), (4500, 3)])
def test_losses_and_gradients_are_those_of_the_probabilities(
    place: Place, width: int, iterations: int
) -> None:
    """Of rows, and of two teacher's crops that are balanced together, without same pairs."""
    student, teacher = logits(place, 3, 5, width), logits(place, 2, 5, width)
    student.requires_grad_()
    exact = student.detach().double().requires_grad_()
    p_TBK = published(teacher.double().flatten(0, 1), 0.07, iterations).view(teacher.shape)
    log_p_SBK = torch.log_softmax(exact / 0.1, -1)
    center = sinkhorn_center(teacher.flatten(0, 1), 0.07, iterations, impl=place.impl)
    options = {"temp_target": 0.07, "impl": place.impl}
    rows = [x[0] for x in (student, teacher)]
    ours = [
        centered_softmax_cross_entropy(*rows, center, **options)[0],
        soft_cross_entropy(rows[0], p_TBK[0], impl=place.impl),
        centered_crop_cross_entropy(student, teacher, center, **options)[0],
    ]
    of_rows = -(p_TBK[0] * log_p_SBK[0]).sum(-1).mean()
    pairs = -torch.einsum("tbk,sbk->ts", p_TBK, log_p_SBK) / 5
    different = ~torch.eye(2, 3, dtype=torch.bool, device=pairs.device)
    for loss, truth in zip(ours, (of_rows, of_rows, pairs[different].mean()), strict=True):
        torch.testing.assert_close(loss.double(), truth, rtol=2e-6, atol=0)
        (grad,), (true,) = (
            torch.autograd.grad(y, x, retain_graph=True)
            for y, x in ((loss, student), (truth, exact))
        )
        assert (grad - true).norm() <= 2e-5 * true.norm()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spread", [1e-6, 30.0, 5000.0])
def test_logits_of_any_size_are_balanced(place: Place, spread: float, dtype: torch.dtype) -> None:
    """The exponential of the largest is no number in the published form, nor is that of 1,000."""
    teacher = logits(place, 6, 30, spread=spread).to(dtype)
    teacher[:, 3] += 10 * spread
    teacher[2] -= 8 * spread
    center = sinkhorn_center(teacher, 0.04, impl=place.impl)
    truth = in_logarithms(teacher.double(), 0.04, 3)
    assert torch.isfinite(center).all()
    assert (center - truth).norm() <= 1e-6 * (truth.norm() + 0.04)
    if spread > 1:
        assert torch.isnan(published(teacher.float(), 0.04, 3)).any()


def test_a_shift_of_a_sample_or_of_all_changes_no_probability(place: Place) -> None:
    """Of a sample not: in the first iteration samples have no scale of their own."""
    teacher = logits(place, 9, 12).double()

    def probabilities(t: Tensor) -> Tensor:
        return torch.softmax((t - sinkhorn_center(t, 0.06, impl=place.impl)) / 0.06, 1)

    plain = probabilities(teacher)
    torch.testing.assert_close(probabilities(teacher + 5), plain)
    torch.testing.assert_close(probabilities(teacher + torch.randn(12).to(teacher)), plain)
    apart = teacher.clone()
    apart[0] += 1
    assert not torch.allclose(probabilities(apart), plain, rtol=1e-3)


def test_many_iterations_use_every_prototype_alike(place: Place) -> None:
    teacher = logits(place, 8, 3)
    center = sinkhorn_center(teacher, 0.2, 25, impl=place.impl)
    used = torch.softmax((teacher - center) / 0.2, 1).sum(0)
    torch.testing.assert_close(used, torch.full_like(used, 8 / 3), rtol=1e-4, atol=0)


def of_processes(
    parts: list[Tensor], returns: bool, **options: Any
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """The center of each process, and what was reduced; none waits for another.

    All processes run from the start once for each reduction, which stops at the first whose sums
    of the others are not known yet.
    """
    totals: list[Tensor] = []
    reduced: list[list[Tensor]] = []

    class NotYet(Exception):
        pass

    def process(part: Tensor) -> tuple[Tensor | None, Tensor | None]:
        calls = iter(range(99))
        given: list[Tensor] = []

        def all_reduce(own: Tensor) -> Tensor | None:
            at = next(calls)
            if at == len(totals):
                given.append(own.clone())
                raise NotYet
            if returns:
                return totals[at]
            own.copy_(totals[at])
            return None

        try:
            return sinkhorn_center(part, all_reduce=all_reduce, **options), None
        except NotYet:
            return None, given[0]

    while True:
        results = [process(part) for part in parts]
        centers = [c for c, _ in results if c is not None]
        if len(centers) == len(parts):
            return centers, reduced
        own = [x for _, x in results if x is not None]
        assert len(own) == len(parts), "all reduce as often"
        reduced.append(own)
        totals.append(torch.stack(own).sum(0))


@pytest.mark.parametrize("returns", [False, True])
@pytest.mark.parametrize("iterations", [1, 3])
def test_processes_have_the_center_of_all_samples(
    place: Place, iterations: int, returns: bool
) -> None:
    """Of unequal numbers, one of them 0, and of logits far apart."""
    whole = logits(place, 20, 11)
    whole[:6] += 40
    parts = [whole[:6], whole[6:6], whole[6:]]
    options = {"temp_target": 0.05, "iterations": iterations, "impl": place.impl}
    centers, reduced = of_processes(parts, returns, **options)
    expected = sinkhorn_center(whole, **options)
    truth = in_logarithms(whole.double(), 0.05, iterations)
    for center in centers:
        torch.testing.assert_close(center, expected, rtol=2e-6, atol=1e-6)
        torch.testing.assert_close(center.double(), truth, rtol=2e-6, atol=1e-6)
    assert len(reduced) == iterations + 1
    assert all(x.shape == (12,) and x.dtype == torch.float64 for own in reduced for x in own)
    assert [[int(x[-1]) for x in own] for own in reduced] == [[6, 0, 14]] * (iterations + 1)


def test_logits_beyond_what_processes_can_share_are_no_number(place: Place) -> None:
    """And up to there they are right."""
    for size, finite in ((0.05 * 69_000, True), (0.05 * 75_000, False)):
        for sign in (-1, 1):
            teacher = logits(place, 4, 5) + sign * size
            centers, _ = of_processes([teacher[:1], teacher[1:]], True, temp_target=0.05)
            assert all(bool(torch.isfinite(c).all()) == finite for c in centers)
            if finite:
                truth = in_logarithms(teacher.double(), 0.05, 3)
                assert (centers[0] - truth).norm() <= 1e-6 * truth.norm()


@pytest.mark.parametrize("hook", [None, lambda total: 2 * total], ids=["alone", "reduced"])
def test_no_samples_have_the_center_zero(
    place: Place, hook: Callable[[Tensor], Tensor] | None
) -> None:
    """As in a batch without a masked patch, for which the loss is 0."""
    teacher = torch.zeros(0, 5, device=place.device, dtype=torch.bfloat16)
    center = sinkhorn_center(teacher, 0.07, all_reduce=hook, impl=place.impl)
    assert torch.equal(center, torch.zeros(5, device=place.device))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy, under the interpreter
@pytest.mark.parametrize("at", [2, 34])
def test_a_nan_shows_in_the_center(place: Place, at: int) -> None:
    teacher = logits(place, 5, 35)
    teacher[1, at] = float("nan")
    assert torch.isnan(sinkhorn_center(teacher, 0.07, 1, impl=place.impl)[at])
    assert torch.isnan(sinkhorn_center(teacher, 0.07, 2, impl=place.impl)).all()


def test_a_temperature_on_the_device_is_followed_and_may_not_learn(place: Place) -> None:
    teacher = logits(place, 5, 9)
    temp = torch.tensor(0.2, device=place.device)
    found = [sinkhorn_center(teacher, t, impl=place.impl) for t in (temp, 0.2)]
    torch.testing.assert_close(*found)
    with pytest.raises(ValueError, match=r"^temp_target: requires a gradient, .*; detach it"):
        sinkhorn_center(teacher, temp.requires_grad_(), impl=place.impl)
