"""Powers of two by the polynomial, and a tile that shares its exponentials."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sjepa_kernels._triton import HAVE_TRITON, INTERPRETED, tl, triton
from sjepa_kernels.attention.exponential import POLYNOMIAL_ERROR, exp2, polynomial_exp2
from tests.kernels.cases import Place

ROWS, COLUMNS = 32, 64


@triton.jit
def _shared_kernel(x, out, SHARE: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr):
    place = tl.arange(0, BR)[:, None] * BC + tl.arange(0, BC)[None, :]
    tl.store(out + place, exp2(tl.load(x + place), SHARE))


@triton.jit
def _polynomial_kernel(x, out, BR: tl.constexpr, BC: tl.constexpr):
    place = tl.arange(0, BR)[:, None] * BC + tl.arange(0, BC)[None, :]
    tl.store(out + place, polynomial_exp2(tl.load(x + place)))


def run(kernel: object, x: Tensor, **options: int) -> Tensor:
    if not HAVE_TRITON or not (x.is_cuda or INTERPRETED):
        pytest.skip("needs a GPU or the interpreter")
    out = torch.empty_like(x)
    kernel[(1,)](x, out, BR=ROWS, BC=COLUMNS, **options)
    return out


def test_polynomial_keeps_its_error(place: Place) -> None:
    x = torch.linspace(-126.0, 3.0, ROWS * COLUMNS).view(ROWS, COLUMNS)
    power = run(_polynomial_kernel, x.to(place.device)).cpu().double()
    error = (power / x.double().exp2() - 1).abs().max()
    assert error <= POLYNOMIAL_ERROR
    # Worth that many operations: a worse bound would hide a slip, and this one is nearly reached.
    assert error >= 0.9 * POLYNOMIAL_ERROR


def test_polynomial_at_its_ends(place: Place) -> None:
    x = torch.zeros(ROWS, COLUMNS)
    ends = [0.0, 1.0, -1.0, -126.0, 127.0, -127.0, -1000.0, -math.inf, -126.5, -126.999]
    x[0, : len(ends)] = torch.tensor(ends)
    power = run(_polynomial_kernel, x.to(place.device)).cpu()
    # Whole numbers are exact, what a softmax leaves out is zero, and nothing is below it.
    assert torch.equal(power[0, :5], x[0, :5].exp2())
    assert not power[0, 5:8].any()
    assert (power >= 0).all() and (power[0, 8:10] <= 2.0**-125).all()


@pytest.mark.parametrize("share", [0, 2, 4, 8])
def test_share_of_the_polynomial(place: Place, share: int) -> None:
    x = (8 * torch.randn(ROWS, COLUMNS)).clamp(max=0).to(place.device)
    power = run(_shared_kernel, x, SHARE=share)
    truth = x.double().exp2()
    error = (power.double() / truth - 1).abs().cpu()
    assert error.max() <= POLYNOMIAL_ERROR
    by_polynomial = (error > 2e-6).any(dim=0)
    assert by_polynomial.sum() == (COLUMNS // share if share else 0)
