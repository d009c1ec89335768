"""Losses against what they replace: eager PyTorch and `torch.compile`; some beside other projects'.

`pytest benchmarks/bench_losses.py --benchmark-only`; on a GPU where there is one. Each row checks
its values against float64 before it is timed; what it notes, `measuring.py` says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.conftest import COMPILES, value_checks, variants
from benchmarks.measuring import DEVICE, LOSSES, ON_GPU, OURS_BUILT, REGIMES, largest_error, measure
from sjepa_kernels import (
    centered_crop_cross_entropy,
    centered_softmax_cross_entropy,
    sinkhorn_center,
    soft_cross_entropy,
)

pytestmark = COMPILES


def measure_loss(
    benchmark: Any,
    loss_of: Callable[..., tuple[Tensor, Tensor]],
    exactly: Callable[..., tuple[Tensor, Tensor]],
    inputs: list[Tensor],
    regime: str,
) -> None:
    """Check loss, center sum and gradient of a loss of (student, teacher, center), then time it."""
    student, teacher, _ = inputs

    def step() -> tuple[Tensor, Tensor]:
        student.grad = None
        loss, center_sum = loss_of(*inputs)
        loss.backward()
        return loss, center_sum

    # Detached: a loss that lives would bring its stream, the default one, into a later capture.
    values = [x.detach() for x in step()]
    assert student.grad is not None
    exact = [x.detach().double() for x in inputs]
    truths = exactly(exact[0].requires_grad_(), *exact[1:])
    (grad,) = torch.autograd.grad(truths[0], exact[0])
    loss, true_loss = values[0].double(), truths[0]
    with value_checks():
        assert (loss - true_loss).abs() <= 1e-6 * true_loss
        assert (student.grad.double() - grad).norm() <= 2e-6 * grad.norm()
    error = largest_error([*values, student.grad], [*truths, grad])
    measure(benchmark, step, (2 * student.numel() + teacher.numel()) * 4e-9, error, regime)


def plain_loss_and_center(
    student: Tensor, teacher: Tensor, center: Tensor
) -> tuple[Tensor, Tensor]:
    target = torch.softmax((teacher - center) / 0.06, dim=-1)
    loss = -(target * torch.log_softmax(student / 0.1, dim=-1)).sum(-1).mean()
    return loss, teacher.sum(0)


@pytest.mark.benchmark(group="centered cross-entropy, forward, gradient and center sum")
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(
    "shape", [(172800, 256), (8192, 65536)] if ON_GPU else [(16384, 256), (1024, 4096)], ids=str
)
@pytest.mark.parametrize("variant", [*LOSSES, peers.peer("Fast-LLM")])
def test_centered_ce(benchmark: Any, variant: str, shape: tuple[int, int], regime: str) -> None:
    torch.manual_seed(0)
    student = torch.randn(shape, device=DEVICE, requires_grad=True)
    inputs = [student, torch.randn(shape, device=DEVICE), torch.zeros(shape[1], device=DEVICE)]
    losses = variants(plain_loss_and_center, centered_softmax_cross_entropy, dynamic=False)
    losses["Fast-LLM"] = peers.fast_llm
    measure_loss(benchmark, losses[variant], plain_loss_and_center, inputs, regime)


def plain_crop_loss(student: Tensor, teacher: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """DINO as published: softmaxes once per crop, a product and sums per pair."""
    targets = torch.softmax((teacher - center) / 0.04, dim=-1)
    log_p = torch.log_softmax(student / 0.1, dim=-1)
    total, pairs = student.new_zeros(()), 0
    for t, target in enumerate(targets):
        for s, crop in enumerate(log_p):
            if s != t:
                total = total - (target * crop).sum(-1).mean()
                pairs += 1
    return total / pairs, teacher.sum((0, 1))


@pytest.mark.benchmark(group="DINO over pairs of crops, forward, gradient and center sum")
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(
    "shape", [(10, 2, 64, 65536), (2, 2, 1024, 4096)] if ON_GPU else [(10, 2, 8, 4096)], ids=str
)
@pytest.mark.parametrize("variant", LOSSES)
def test_crop_ce(benchmark: Any, variant: str, shape: tuple[int, ...], regime: str) -> None:
    torch.manual_seed(0)
    students, teachers, batch, width = shape
    inputs = [
        (0.3 * torch.randn(students, batch, width, device=DEVICE)).requires_grad_(),
        0.3 * torch.randn(teachers, batch, width, device=DEVICE),
        torch.zeros(width, device=DEVICE),
    ]
    losses = variants(plain_crop_loss, centered_crop_cross_entropy, dynamic=False)
    measure_loss(benchmark, losses[variant], plain_crop_loss, inputs, regime)


def plain_soft_loss(student: Tensor, given: Tensor) -> Tensor:
    return -(given * torch.log_softmax(student / 0.1, dim=-1)).sum(-1).mean()


@pytest.mark.benchmark(group="cross-entropy of given probabilities, forward and gradient")
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(
    "shape", [(172800, 256), (8192, 65536)] if ON_GPU else [(16384, 256), (1024, 4096)], ids=str
)
@pytest.mark.parametrize("variant", [*LOSSES, peers.peer("Automodel"), peers.peer("Liger")])
def test_soft_ce(benchmark: Any, variant: str, shape: tuple[int, int], regime: str) -> None:
    if (variant, regime) == ("Liger", "graph"):
        pytest.skip("it copies from the host, which no graph can")
    torch.manual_seed(0)
    student = torch.randn(shape, device=DEVICE, requires_grad=True)
    given = torch.softmax(3 * torch.randn(shape, device=DEVICE), dim=-1)
    forms = variants(plain_soft_loss, soft_cross_entropy, dynamic=False)
    forms["Automodel"] = peers.automodel
    form = peers.liger(given) if variant == "Liger" else forms[variant]

    def step() -> Tensor:
        student.grad = None
        loss = form(student, given)
        loss.backward()
        return loss

    loss, exact = step().detach(), student.detach().double().requires_grad_()
    assert student.grad is not None
    truth = plain_soft_loss(exact, given.double())
    (grad,) = torch.autograd.grad(truth, exact)
    with value_checks():
        assert (loss - truth).abs() <= 1e-6 * truth
        assert (student.grad.double() - grad).norm() <= 2e-6 * grad.norm()
    error = largest_error([loss, student.grad], [truth, grad])
    measure(benchmark, step, 3 * student.numel() * 4e-9, error, regime)


def sinkhorn_in_exponentials(teacher: Tensor) -> Tensor:
    """Three iterations as published, to the probabilities."""
    q_KB = torch.exp(teacher / 0.06).T
    prototypes, samples = q_KB.shape
    q_KB = q_KB / q_KB.sum()
    for _ in range(3):
        q_KB = q_KB / q_KB.sum(dim=1, keepdim=True) / prototypes
        q_KB = q_KB / q_KB.sum(dim=0, keepdim=True) / samples
    return samples * q_KB.T


def sinkhorn_in_logarithms(teacher: Tensor) -> Tensor:
    """The same as scalings of rows and columns: the prototypes'."""
    y = teacher / 0.06
    prototype = -torch.logsumexp(y, dim=0)
    for _ in range(2):
        sample = -torch.logsumexp(y + prototype, dim=1)
        prototype = -torch.logsumexp(y + sample[:, None], dim=0)
    return prototype


def own_sinkhorn(teacher: Tensor) -> Tensor:
    return sinkhorn_center(teacher, 0.06) / -0.06


@pytest.mark.benchmark(group="Sinkhorn-Knopp, three iterations")
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("shape", [(4096, 4096), (512, 65536)], ids=str)
@pytest.mark.parametrize(
    "variant",
    ["exponentials", "logarithms", "logarithms compiled", pytest.param("ours", marks=OURS_BUILT)],
)
def test_sinkhorn(benchmark: Any, variant: str, shape: tuple[int, int], regime: str) -> None:
    """The exponentials end in probabilities, the others in scalings that a loss takes."""
    torch.manual_seed(0)
    teacher = 0.3 * torch.randn(shape, device=DEVICE)
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "exponentials": sinkhorn_in_exponentials,
        "logarithms": sinkhorn_in_logarithms,
        "logarithms compiled": torch.compile(sinkhorn_in_logarithms, dynamic=False),
        "ours": own_sinkhorn,
    }
    form = forms[variant]
    found = form(teacher)
    if variant != "exponentials":
        found = torch.softmax(teacher / 0.06 + found, dim=1)
    truth = sinkhorn_in_exponentials(teacher.double())
    with value_checks():
        assert (found - truth).norm() <= 1e-5 * truth.norm()
    error = largest_error([found], [truth])
    # One read for the first iteration's sums and two for each of the others.
    measure(benchmark, lambda: form(teacher), 5 * teacher.numel() * 4e-9, error, regime)
