"""Regularizers of features against the formulas in eager PyTorch and compiled.

`pytest benchmarks/bench_regularizers.py --benchmark-only`; on a GPU where there is one. Each row
checks its values against float64 before it is timed; what it notes, `measuring.py` says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, pairwise_distance, relu

from benchmarks.conftest import COMPILES, value_checks, variants
from benchmarks.measuring import DEVICE, LOSSES, ON_GPU, REGIMES, largest_error, measure
from sjepa_kernels import koleo, sigreg, vicreg, visreg
from sjepa_kernels.losses.directions import unit_directions

pytestmark = COMPILES
NEEDS_GPU = pytest.mark.skipif(not ON_GPU, reason="Triton needs a GPU")

Loss = Callable[[Tensor], Tensor]


def measure_loss(
    benchmark: Any, loss_of: Loss, exactly: Loss | None, z: Tensor, regime: str, close: float
) -> None:
    """Check a loss and its gradient, unless there is nothing to check with, then time both."""

    def step() -> Tensor:
        z.grad = None
        loss = loss_of(z)
        loss.backward()
        return loss

    # Detached, as in bench_losses.py.
    values = [step().detach(), z.grad]
    error = 0.0
    if exactly is not None:
        exact = z.detach().double().requires_grad_()
        truth = exactly(exact)
        error = largest_error(values, [truth, *torch.autograd.grad(truth, exact)])
        with value_checks():
            assert error <= close
    measure(benchmark, step, 2 * z.numel() * 4e-9, error, regime)


def plain_visreg(z: Tensor, axes_KD: Tensor) -> Tensor:
    apart = z - z.mean(0)
    sigma = torch.linalg.vector_norm(apart, dim=0) / z.shape[0] ** 0.5 + 1e-6
    ranks = torch.arange(1, z.shape[0] + 1, dtype=z.dtype, device=z.device) / (z.shape[0] + 1)
    x = ((apart / sigma.detach()) @ axes_KD.mT).sort(dim=0).values
    gaps = x - torch.special.ndtri(ranks)[:, None]
    return z.mean(0).square().mean() + (sigma - 1).square().mean() + gaps.square().mean()


def drawn_visreg(z: Tensor, seed: Tensor, directions: int) -> Tensor:
    """The same along directions of torch's own generator."""
    return plain_visreg(z, normalize(torch.randn(directions, z.shape[1], device=z.device), dim=1))


def own_visreg(z: Tensor, seed: Tensor, directions: int) -> Tensor:
    return visreg(z, seed, directions=directions).loss


@pytest.mark.benchmark(group="VISReg with its directions, forward and gradient")
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("shape", [(2048, 512) if ON_GPU else (1024, 128)], ids=str)
@pytest.mark.parametrize("variant", LOSSES)
def test_visreg(benchmark: Any, variant: str, shape: tuple[int, int], regime: str) -> None:
    """256 directions; ours is checked along its own, the others have random ones.

    Neighbours in rank that are closer than a rounding may change places: of a number's gradient
    that is up to 6e-3 of the largest, in eager as well.
    """
    torch.manual_seed(0)
    z = torch.randn(shape, device=DEVICE, requires_grad=True)
    seed = torch.tensor(7, device=DEVICE)
    form = variants(drawn_visreg, own_visreg, dynamic=False)[variant]
    first = torch.zeros((), dtype=torch.int64, device=DEVICE)
    axes = unit_directions(seed, first, 256, shape[1], torch.float64, "torch")
    exactly = (lambda x: plain_visreg(x, axes)) if variant.startswith("ours") else None
    measure_loss(benchmark, lambda x: form(x, seed, 256), exactly, z, regime, 1e-2)


def plain_vicreg(z: Tensor) -> Tensor:
    x = z - z.mean(0)
    covariance = x.mT @ x / (x.shape[0] - 1)
    own = torch.eye(z.shape[1], dtype=torch.bool, device=z.device)
    total = torch.where(own, 0, covariance).square().sum()
    return 25 * relu(1 - torch.sqrt(x.var(0) + 1e-4)).mean() + total / z.shape[1]


def own_vicreg(z: Tensor) -> Tensor:
    return vicreg(z).loss


@pytest.mark.benchmark(group="VICReg's variance and covariance, forward and gradient")
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(
    "shape", [(2048, 8192), (256, 8192)] if ON_GPU else [(512, 512), (128, 1024)], ids=str
)
@pytest.mark.parametrize("variant", ["eager", "compiled", "ours", "ours compiled"])
def test_vicreg(benchmark: Any, variant: str, shape: tuple[int, int], regime: str) -> None:
    torch.manual_seed(0)
    z = (0.9 * torch.randn(shape, device=DEVICE)).requires_grad_()
    form = variants(plain_vicreg, own_vicreg, dynamic=False)[variant]
    measure_loss(benchmark, form, plain_vicreg, z, regime, 1e-4)


def plain_koleo(z: Tensor) -> Tensor:
    """DINOv2's, with all products in memory."""
    x = normalize(z, dim=-1, eps=1e-8)
    with torch.no_grad():
        near = (x @ x.mT).fill_diagonal_(-1).argmax(dim=1)
    return -torch.log(pairwise_distance(x, x[near], 2, eps=1e-8) + 1e-8).mean()


@pytest.mark.benchmark(group="KoLeo, forward and gradient")
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("shape", [(64, 1024), (2048, 1024)] if ON_GPU else [(512, 384)], ids=str)
@pytest.mark.parametrize("variant", ["eager", "compiled", pytest.param("ours", marks=NEEDS_GPU)])
def test_koleo(benchmark: Any, variant: str, shape: tuple[int, int], regime: str) -> None:
    """On a CPU ours is the eager row, a chunk of rows at a time."""
    torch.manual_seed(0)
    z = torch.randn(shape, device=DEVICE, requires_grad=True)
    form = variants(plain_koleo, koleo, dynamic=False)[variant]
    measure_loss(benchmark, form, plain_koleo, z, regime, 1e-4)


def plain_sigreg(z: Tensor, axes: Tensor) -> Tensor:
    """LeJEPA's formula with all knots at once, along directions that are columns."""
    t = torch.linspace(0, 3, 17, dtype=z.dtype, device=z.device)
    phi = (-t * t / 2).exp()
    angles = (z @ axes)[..., None] * t
    gaps = (angles.cos().mean(0) - phi).square() + angles.sin().mean(0).square()
    return torch.trapezoid(2 * gaps * phi, t).mean() * z.shape[0]


def drawn_sigreg(z: Tensor, seed: Tensor, directions: int) -> Tensor:
    """The same along directions of torch's own generator."""
    axes = torch.randn(z.shape[1], directions, device=z.device)
    return plain_sigreg(z, axes / torch.linalg.vector_norm(axes, dim=0))


def own_sigreg(z: Tensor, seed: Tensor, directions: int) -> Tensor:
    return sigreg(z, seed, directions=directions)


@pytest.mark.benchmark(group="SIGReg with its directions, forward and gradient")
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("shape", [(2048, 1024), (2048, 256)], ids=str)
@pytest.mark.parametrize("variant", LOSSES)
def test_sigreg(benchmark: Any, variant: str, shape: tuple[int, int], regime: str) -> None:
    """128 features; ours is checked along its own directions, the others have random ones."""
    torch.manual_seed(0)
    samples, directions = shape
    z = torch.randn(samples, 128, device=DEVICE, requires_grad=True)
    seed = torch.tensor(7, device=DEVICE)
    form = variants(drawn_sigreg, own_sigreg, dynamic=False)[variant]

    def step() -> Tensor:
        z.grad = None
        loss = form(z, seed, directions)
        loss.backward()
        return loss

    values = [step().detach(), z.grad]
    error = 0.0
    if variant.startswith("ours"):
        first = torch.zeros((), dtype=torch.int64, device=DEVICE)
        axes = unit_directions(seed, first, directions, 128, torch.float64, "torch")
        exact = z.detach().double().requires_grad_()
        truth = plain_sigreg(exact, axes.mT)
        truths = [truth, *torch.autograd.grad(truth, exact)]
        error = largest_error(values, truths)
        with value_checks():
            assert error <= 1e-5
    # The features are read and their gradient is written; projections could stay in caches.
    measure(benchmark, step, 2 * z.numel() * 4e-9, error, regime)
