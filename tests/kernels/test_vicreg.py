"""VICReg's terms against the formula in float64, by the product of features and of samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import relu

from sjepa_kernels import VicReg, vicreg
from tests.kernels.cases import assert_learns_within_budget, in_float64
from tests.kernels.ops.vicreg import published

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# V, N, D: fewer and more samples than features, half as many, two samples.
SHAPES = [(1, 70, 9), (3, 5, 7), (2, 8, 16), (1, 9, 40), (2, 2, 5)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_value_and_gradient(dtype: torch.dtype, shape: tuple[int, ...], spread: float) -> None:
    z = (2 + spread * torch.randn(shape)).to(dtype).requires_grad_()
    exact = in_float64([z])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    extra = 1e-13 if dtype == torch.float64 else 3e-6
    truth, eager = published(exact[0]), published(z.to(wide))
    assert_learns_within_budget(vicreg(z), eager, truth, [z], exact, extra)


def test_weights_make_the_loss_of_the_papers_code() -> None:
    """Which takes the mean of the variances of two views and the sum of their covariances."""
    z = 0.8 * torch.randn(2, 30, 6, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for view in z:
        x = view - view.mean(dim=0)
        covariance = x.T @ x / 29
        total += 25 * relu(1 - torch.sqrt(x.var(dim=0) + 1e-4)).mean() / 2
        total += (covariance - covariance.diag().diag()).square().sum() / 6
    torch.testing.assert_close(vicreg(z, weights=(25.0, 2.0)).loss, total)


def test_collapsed_features_have_gamma_and_no_gradient_of_it() -> None:
    z = torch.full((8, 3), 2.0, requires_grad=True)
    found = vicreg(z, gamma=1.5, eps=0.25)
    assert found.variance == 1
    assert found.covariance == 0
    assert not torch.autograd.grad(found.loss, z)[0].any()


@pytest.mark.parametrize(("shape", "side"), [((40, 8), 8), ((8, 40), 8), ((30, 40), 40)])
def test_features_are_kept_once(shape: tuple[int, int], side: int) -> None:
    """With the smaller product, and a row of variances."""
    saved: list[int] = []

    def keep(x: Tensor) -> Tensor:
        saved.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        vicreg(torch.randn(shape, requires_grad=True))
    assert sorted(saved, reverse=True) == sorted(
        [shape[0] * shape[1], side * side, shape[1]], reverse=True
    )


@pytest.mark.parametrize("shape", [(12, 8), (4, 8)])
def test_half_precision_gradients_survive_a_loss_scale(shape: tuple[int, int]) -> None:
    """The scale multiplies before the gradient is rounded to float16."""
    z = (0.5 * torch.randn(shape)).half().requires_grad_()
    exact = in_float64([z])[0]
    (true,) = torch.autograd.grad(published(exact)[0] * 1e-4, exact)
    (scaled,) = torch.autograd.grad(vicreg(z).loss * 1e-4 * 65536, z)
    error = (scaled.double() / 65536 - true).norm() / true.norm()
    assert error <= torch.finfo(torch.float16).eps


@pytest.mark.parametrize("shape", [(2, 12, 8), (2, 4, 8)])
def test_autocast_changes_nothing(shape: tuple[int, ...]) -> None:
    z = torch.randn(shape, requires_grad=True)
    plain = vicreg(z).loss
    with torch.autocast("cpu", torch.bfloat16):
        cast = vicreg(z).loss
    assert torch.equal(cast, plain)
    assert all(map(torch.equal, *(torch.autograd.grad(x, z) for x in (cast, plain))))


@pytest.mark.parametrize("shape", [(2, 12, 8), (2, 4, 8)])
def test_opcheck(shape: tuple[int, ...]) -> None:
    z = torch.randn(shape).half().requires_grad_()
    torch.library.opcheck(torch.ops.sjepa.vicreg.default, (z, 1.0, 1e-4))


def test_module_is_the_function() -> None:
    z = torch.randn(2, 9, 4)
    expected = vicreg(z, gamma=2.0, eps=0.1, weights=(3.0, 0.5)).loss
    assert torch.equal(VicReg(2.0, 0.1, weights=(3.0, 0.5))(z), expected)
    assert torch.equal(VicReg()(z), vicreg(z).loss)
