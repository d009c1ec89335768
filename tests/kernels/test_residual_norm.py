"""Residual addition with LayerNorm against float64, in every implementation that runs here."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from sjepa_kernels import residual_layer_norm
from tests.kernels.cases import Place, assert_within_budget, compiles

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Leading axes and D: one row, odd sizes, exact tiles, a broken tile of rows, wide rows.
SHAPES = [(1, 2), (2, 3, 5), (7, 33), (4, 256), (9, 1, 100), (3, 2100)]
NAMES = ["x", "residual", "weight", "bias"]


def random_inputs(shape: Sequence[int], dtype: torch.dtype, device: str) -> list[Tensor]:
    width = shape[-1]
    made = [torch.randn(*shape), 2 * torch.randn(*shape) + 1, torch.randn(width) + 1]
    made.append(torch.randn(width))
    return [x.to(device, dtype).requires_grad_() for x in made]


def by_definition(leaves: list[Tensor]) -> tuple[Tensor, Tensor]:
    x, residual, weight, bias = leaves
    total = x + residual
    return layer_norm(total, weight.shape, weight, bias), total


def gradients(
    outputs: Sequence[Tensor], leaves: list[Tensor], grads: Sequence[Tensor]
) -> list[Tensor]:
    wanted = [x for x in leaves if x.requires_grad]
    return list(torch.autograd.grad(outputs, wanted, grads, materialize_grads=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(place: Place, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    leaves = random_inputs(shape, dtype, place.device)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    ours = residual_layer_norm(*leaves, impl=place.impl)
    eager, truth = by_definition(leaves), by_definition(exact)
    grads = [torch.randn(shape).to(place.device, dtype) for _ in range(2)]
    for got, plain, true, what in zip(ours, eager, truth, ("y", "sum"), strict=True):
        assert_within_budget(got, plain, true, what)
    compared = zip(
        gradients(ours, leaves, grads),
        gradients(eager, leaves, grads),
        gradients(truth, exact, [g.double() for g in grads]),
        NAMES,
        strict=True,
    )
    for got, plain, true, what in compared:
        assert_within_budget(got, plain, true, f"gradient of {what}")


@pytest.mark.parametrize("used", [0, 1])
def test_one_output_used(place: Place, used: int) -> None:
    leaves = random_inputs((5, 12), torch.float64, place.device)
    grad = torch.randn(5, 12, dtype=torch.float64, device=place.device)
    ours = gradients([residual_layer_norm(*leaves, impl=place.impl)[used]], leaves, [grad])
    truth = gradients([by_definition(leaves)[used]], leaves, [grad])
    for got, true, what in zip(ours, truth, NAMES, strict=True):
        assert_within_budget(got, true, true, f"gradient of {what}")


def test_every_subset_of_gradients(place: Place) -> None:
    leaves = random_inputs((4, 6), torch.float64, place.device)
    grads = torch.randn(2, 4, 6, dtype=torch.float64, device=place.device).unbind()
    full = gradients(residual_layer_norm(*leaves, impl=place.impl), leaves, grads)
    for wanted in itertools.product([False, True], repeat=4):
        some = [x.detach().requires_grad_(w) for x, w in zip(leaves, wanted, strict=True)]
        y, total = residual_layer_norm(*some, impl=place.impl)
        assert y.requires_grad == any(wanted)
        if wanted[0] or wanted[1]:
            got = gradients([y, total], some, grads)
            expected = [g for g, w in zip(full, wanted, strict=True) if w]
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_branch_and_stream_of_different_dtypes(place: Place) -> None:
    x, residual, weight, bias = random_inputs((6, 20), torch.float32, place.device)
    branch = x.detach().bfloat16().requires_grad_()
    leaves = [branch, residual, weight, bias]
    exact = [p.detach().double().requires_grad_() for p in leaves]
    y, total = residual_layer_norm(*leaves, impl=place.impl)
    truth = by_definition(exact)
    assert (y.dtype, total.dtype) == (torch.bfloat16, torch.float32)
    assert_within_budget(total, branch + residual, truth[1], "sum")
    assert_within_budget(y, truth[0].bfloat16(), truth[0], "y")
    grads = [torch.randn(6, 20, device=place.device).to(t.dtype) for t in (y, total)]
    got = gradients([y, total], leaves, grads)
    true = gradients(truth, exact, [g.double() for g in grads])
    for ours, plain, exactly, what in zip(
        got, (t.to(p.dtype) for t, p in zip(true, leaves, strict=True)), true, NAMES, strict=True
    ):
        assert_within_budget(ours, plain, exactly, f"gradient of {what}")


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


def test_strided_inputs_and_expanded_gradients(place: Place) -> None:
    leaves = random_inputs((3, 4, 6), torch.float64, place.device)
    turned = [
        leaves[0].detach().mT.contiguous().mT.requires_grad_(),
        torch.stack([leaves[1].detach()] * 2, dim=-1)[..., 0].requires_grad_(),
        *(p.detach().repeat_interleave(2)[::2].requires_grad_() for p in leaves[2:]),
    ]
    assert not any(x.is_contiguous() for x in turned)
    ours, plain = (residual_layer_norm(*args, impl=place.impl) for args in (turned, leaves))
    torch.testing.assert_close(ours, plain, rtol=1e-13, atol=1e-13)
    one = torch.ones((), dtype=torch.float64, device=place.device).expand(3, 4, 6)
    grad = torch.arange(6.0, dtype=torch.float64, device=place.device).expand(3, 4, 6)
    got = gradients(ours, turned, [grad, one])
    expected = gradients(plain, leaves, [grad.contiguous(), one.contiguous()])
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4), (3, 0)], ids=str)
def test_empty(place: Place, shape: tuple[int, ...]) -> None:
    leaves = random_inputs(shape, torch.float32, place.device)
    y, total = residual_layer_norm(*leaves, impl=place.impl)
    assert y.shape == total.shape == shape
    for leaf, grad in zip(
        leaves, gradients([y, total], leaves, [torch.ones_like(y)] * 2), strict=True
    ):
        assert torch.equal(grad, torch.zeros_like(leaf))


def test_repeats_bitwise(place: Place) -> None:
    leaves = random_inputs((50, 70), torch.float32, place.device)
    runs = []
    for _ in range(2):
        outputs = residual_layer_norm(*leaves, impl=place.impl)
        grads = [torch.cos(out.detach() * 9) for out in outputs]
        runs.append([*outputs, *gradients(outputs, leaves, grads)])
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


def test_gradcheck(place: Place) -> None:
    leaves = random_inputs((3, 5), torch.float64, place.device)
    assert torch.autograd.gradcheck(
        lambda *args: residual_layer_norm(*args, impl=place.impl), leaves
    )


def test_opcheck(place: Place) -> None:
    if place.impl != "triton":
        pytest.skip("only the kernels are registered")
    leaves = random_inputs((4, 6), torch.float32, place.device)
    op = torch.ops.sjepa.residual_layer_norm.default
    torch.library.opcheck(op, (*leaves, 1e-5))
    backward = torch.ops.sjepa.residual_layer_norm_backward.default
    with torch.no_grad():
        y, total, mean, rstd = op(*leaves, 1e-5)
        for needs in (True, False):
            args = (y[:1].expand(4, 6), total, total, mean, rstd, leaves[2].detach(), needs)
            torch.library.opcheck(backward, args)


@compiles
def test_compiled_values_equal_eager(place: Place) -> None:
    leaves = random_inputs((4, 6), torch.float32, place.device)

    def step(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        y, total = residual_layer_norm(x * 2, residual, weight, bias, impl=place.impl)
        return y.tanh(), total * 3

    eager, compiled = step(*leaves), torch.compile(step, fullgraph=True)(*leaves)
    torch.testing.assert_close(compiled, eager)
    ones = [torch.ones_like(eager[0])] * 2
    torch.testing.assert_close(gradients(compiled, leaves, ones), gradients(eager, leaves, ones))


def test_kernels_name_the_widest_row(place: Place) -> None:
    if place.impl != "triton":
        pytest.skip("the reference takes any width")
    leaves = random_inputs((1, 4097), torch.float32, place.device)
    with pytest.raises(ValueError, match=r'x: width 4097; up to 4096, or impl="torch"'):
        residual_layer_norm(*leaves, impl=place.impl)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.zeros(())}, ValueError, r"x: \(\); expected"),
        ({"x": torch.zeros(2, 3).int()}, TypeError, "x: torch.int32"),
        ({"residual": torch.zeros(3)}, ValueError, r"residual: \(3,\); expected x.shape = \(2, 3"),
        ({"weight": torch.zeros(2)}, ValueError, r"weight: \(2,\); expected \(D,\) = \(3,\)"),
        ({"bias": torch.zeros(3).long()}, TypeError, "bias: torch.int64"),
        ({"bias": torch.zeros(3, device="meta")}, ValueError, "bias: meta; move it to cpu"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], error: type[Exception], words: str) -> None:
    good = {
        "x": torch.zeros(2, 3),
        "residual": torch.zeros(2, 3),
        "weight": torch.zeros(3),
        "bias": torch.zeros(3),
    }
    with pytest.raises(error, match=words):
        residual_layer_norm(*(good | change).values())
