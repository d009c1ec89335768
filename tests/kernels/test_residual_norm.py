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
    compiles,
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


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4)], ids=str)
def test_empty(place: Place, shape: tuple[int, ...]) -> None:
    leaves = random_inputs(shape, torch.float32, place.device)
    y, total = residual_layer_norm(*leaves, impl=place.impl)
    assert y.shape == total.shape == shape
    for leaf, grad in zip(
        leaves, gradients([y, total], leaves, [torch.ones_like(y)] * 2), strict=True
    ):
        assert torch.equal(grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 5), (4, 256)], ids=str)
def test_bias_that_the_branch_has_already(
    place: Place, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    leaves = [*random_inputs(shape, dtype, place.device)]
    leaves += [torch.randn(shape[-1:]).to(place.device, dtype).requires_grad_()]
    exact = in_float64(leaves)

    def with_bias(leaves: list[Tensor]) -> tuple[Tensor, Tensor]:
        x, *others, added = leaves
        return by_definition([x + added, *others])

    x, *others, added = leaves
    ours = residual_layer_norm(x + added.detach(), *others, added_bias_D=added, impl=place.impl)
    assert_learns_within_budget(ours, with_bias(leaves), with_bias(exact), leaves, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_without_a_residual(place: Place, dtype: torch.dtype, biased: bool) -> None:
    x, _, *affine = random_inputs((3, 4, 20), dtype, place.device)
    added = torch.randn(20).to(place.device, dtype).requires_grad_() if biased else None
    leaves = [x, *affine, *([added] if added is not None else [])]
    exact = in_float64(leaves)

    def plain(leaves: list[Tensor]) -> tuple[Tensor, Tensor]:
        x, weight, bias, *added = leaves
        total = x + added[0] if added else x * 1
        return layer_norm(total, weight.shape, weight, bias), total

    there = x + added.detach() if added is not None else x * 1
    y, total = residual_layer_norm(there, None, *affine, added_bias_D=added, impl=place.impl)
    assert total.data_ptr() == there.data_ptr() or place.impl == "torch"
    assert_learns_within_budget((y, total), plain(leaves), plain(exact), leaves, exact)


def test_gradients_of_both_outputs_meet_in_one_kernel(place: Place) -> None:
    if place.impl != "triton":
        pytest.skip("the reference adds them")
    x, _, *affine = random_inputs((3, 20), torch.float32, place.device)
    y, total = residual_layer_norm(x, None, *affine, impl=place.impl)
    assert total.grad_fn is y.grad_fn is not None


def test_a_sum_that_nobody_uses_has_no_gradient_to_read(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place.impl != "triton":
        pytest.skip("the reference has no kernel")
    module = importlib.import_module("sjepa_kernels.blocks.residual_norm")
    plain, seen = module._gradients_op, []

    def record(*args: object) -> object:
        seen.append(args[1] is None)
        return plain(*args)

    monkeypatch.setattr(module, "_gradients_op", record)
    leaves = random_inputs((3, 20), torch.float32, place.device)
    for some in ([0], [0, 1]):
        outputs = residual_layer_norm(*leaves, impl=place.impl)
        torch.autograd.backward([outputs[k].sum() for k in some])
    assert seen == [True, False]


@pytest.mark.parametrize("learns", [False, True])
def test_a_table_for_all_sequences(place: Place, learns: bool) -> None:
    x, _, *affine = random_inputs((3, 7, 20), torch.float32, place.device)
    x = x.detach().bfloat16().requires_grad_()
    table = torch.randn(7, 20, device=place.device, requires_grad=learns)
    leaves = [x, table, *affine]
    exact = in_float64(leaves)
    ours = residual_layer_norm(*leaves, impl=place.impl)
    assert ours[1].dtype == torch.float32
    eager = (by_definition(leaves)[0].bfloat16(), x + table)
    assert_learns_within_budget(ours, eager, by_definition(exact), leaves, exact)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("stream", [torch.float32, torch.bfloat16], ids=str)
def test_dtypes_are_the_callers_also_under_autocast(
    place: Place, stream: torch.dtype, residual: bool
) -> None:
    x, other, weight, bias = random_inputs((6, 20), torch.float32, place.device)
    x = x.detach().to(stream).requires_grad_()
    given = other if residual else None
    for dtype in (None, torch.bfloat16, torch.float32):
        with torch.autocast(place.device, torch.bfloat16):
            y, total = residual_layer_norm(x, given, weight, bias, dtype=dtype, impl=place.impl)
        assert y.dtype == (dtype or stream)
        assert total.dtype == (torch.float32 if residual else stream)
        truth = x.detach().double() + (other.detach().double() if residual else 0)
        exact = layer_norm(truth, (20,), weight.detach().double(), bias.detach().double())
        assert_within_budget(y, exact.to(y.dtype), exact, "y")
        grads = torch.autograd.grad([y.sum(), total.sum()], [x, weight])
        assert [g.dtype for g in grads] == [stream, torch.float32]


@compiles
@pytest.mark.parametrize("biased", [False, True])
def test_compiled_without_a_residual(place: Place, biased: bool) -> None:
    x, added, *affine = random_inputs((5, 12), torch.float64, place.device)
    added = added[0].detach().clone().requires_grad_()
    leaves = [x, *affine, added]

    def step(x: Tensor, weight: Tensor, bias: Tensor, added: Tensor) -> list[Tensor]:
        bias_D = added if biased else None
        y, total = residual_layer_norm(
            x * 2, None, weight, bias, added_bias_D=bias_D, impl=place.impl
        )
        return [y.sin(), total.cos()]

    runs = []
    for form in (step, torch.compile(step, fullgraph=True)):
        found = form(*leaves)
        runs.append(found + gradients(found, leaves, [torch.ones_like(y) for y in found]))
    torch.testing.assert_close(*runs)


def test_kernels_name_the_widest_row(place: Place) -> None:
    if place.impl != "triton":
        pytest.skip("the reference takes any width")
    leaves = random_inputs((1, 4097), torch.float32, place.device)
    with pytest.raises(ValueError, match=r'x: width 4097; up to 4096, or impl="torch"'):
        residual_layer_norm(*leaves, impl=place.impl)
