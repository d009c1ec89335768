"""Residual addition with LayerNorm against float64, in every implementation that runs here."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from sjepa_kernels import residual_layer_norm
from tests.kernels.cases import (
    Place,
    assert_learns_within_budget,
    assert_within_budget,
    gradients,
    in_float64,
)

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Leading axes and D: one row, odd sizes, exact tiles, a broken tile of rows, wide rows.
SHAPES = [(1, 2), (2, 3, 5), (7, 33), (4, 256), (9, 1, 100), (3, 2100)]


def random_inputs(shape: Sequence[int], dtype: torch.dtype, device: str) -> list[Tensor]:
    width = shape[-1]
    made = [torch.randn(*shape), 2 * torch.randn(*shape) + 1, torch.randn(width) + 1]
    made.append(torch.randn(width))
    return [x.to(device, dtype).requires_grad_() for x in made]


def by_definition(leaves: list[Tensor]) -> tuple[Tensor, Tensor]:
    x, residual, weight, bias = leaves
    total = x + residual
    return layer_norm(total, weight.shape, weight, bias), total


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(place: Place, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    leaves = random_inputs(shape, dtype, place.device)
    exact = in_float64(leaves)
    ours = residual_layer_norm(*leaves, impl=place.impl)
    assert_learns_within_budget(ours, by_definition(leaves), by_definition(exact), leaves, exact)


@pytest.mark.parametrize("used", [0, 1])
def test_one_output_used(place: Place, used: int) -> None:
    leaves = random_inputs((5, 12), torch.float64, place.device)
    grad = torch.randn(5, 12, dtype=torch.float64, device=place.device)
    ours = gradients([residual_layer_norm(*leaves, impl=place.impl)[used]], leaves, [grad])
    truth = gradients([by_definition(leaves)[used]], leaves, [grad])
    for k, (got, true) in enumerate(zip(ours, truth, strict=True)):
        assert_within_budget(got, true, true, f"gradient {k}")


def test_branch_and_stream_of_different_dtypes(place: Place) -> None:
    x, residual, weight, bias = random_inputs((6, 20), torch.float32, place.device)
    branch = x.detach().bfloat16().requires_grad_()
    leaves = [branch, residual, weight, bias]
    exact = in_float64(leaves)
    y, total = residual_layer_norm(*leaves, impl=place.impl)
    truth = by_definition(exact)
    assert (y.dtype, total.dtype) == (torch.bfloat16, torch.float32)
    assert_within_budget(total, branch + residual, truth[1], "sum")
    assert_within_budget(y, truth[0].bfloat16(), truth[0], "y")
    grads = [torch.randn(6, 20, device=place.device).to(t.dtype) for t in (y, total)]
    got = gradients([y, total], leaves, grads)
    true = gradients(truth, exact, [g.double() for g in grads])
    for k, (ours, exactly) in enumerate(zip(got, true, strict=True)):
        assert_within_budget(ours, exactly.to(ours.dtype), exactly, f"gradient {k}")


@pytest.mark.parametrize(("dtype", "offset"), [(torch.float32, 1e4), (torch.bfloat16, 64.0)])
def test_a_stream_far_from_zero(place: Place, dtype: torch.dtype, offset: float) -> None:
    leaves = random_inputs((5, 64), dtype, place.device)
    leaves[1] = (offset + torch.randn(5, 64)).to(place.device, dtype).requires_grad_()
    y, total = residual_layer_norm(*leaves, impl=place.impl)
    # The sum is rounded by definition; y is the norm of what it became, and loses no more.
    truth, _ = by_definition([p.detach().double() for p in (total, total * 0, *leaves[2:])])
    assert (y - truth).norm() <= (1e-3 if dtype == torch.float32 else 1e-2) * truth.norm()


def test_more_rows_than_programs(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    if place.impl == "triton":
        module = importlib.import_module("sjepa_kernels.blocks.residual_norm")
        monkeypatch.setattr(module, "_PROGRAMS", 3)
    leaves = random_inputs((999, 10), torch.float64, place.device)
    grads = torch.randn(2, 999, 10, dtype=torch.float64, device=place.device).unbind()
    ours = gradients(residual_layer_norm(*leaves, impl=place.impl), leaves, grads)
    truth = gradients(by_definition(leaves), leaves, grads)
    torch.testing.assert_close(ours, truth, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4), (3, 0)], ids=str)
def test_empty(place: Place, shape: tuple[int, ...]) -> None:
    leaves = random_inputs(shape, torch.float32, place.device)
    y, total = residual_layer_norm(*leaves, impl=place.impl)
    assert y.shape == total.shape == shape
    for leaf, grad in zip(
        leaves, gradients([y, total], leaves, [torch.ones_like(y)] * 2), strict=True
    ):
        assert torch.equal(grad, torch.zeros_like(leaf))


def test_kernels_name_the_widest_row(place: Place) -> None:
    if place.impl != "triton":
        pytest.skip("the reference takes any width")
    leaves = random_inputs((1, 4097), torch.float32, place.device)
    with pytest.raises(ValueError, match=r'x: width 4097; up to 4096, or impl="torch"'):
        residual_layer_norm(*leaves, impl=place.impl)
