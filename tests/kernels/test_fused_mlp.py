"""The fused MLP against float64, in every implementation that runs here."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear

from sjepa_kernels import fused_mlp
from tests.kernels.cases import Place, assert_within_budget, compiles, gradients

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Leading axes and D, and H: one row, odd sizes, exact tiles, broken tiles of rows and hidden units.
SHAPES = [((1, 2), 1), ((2, 3, 5), 20), ((64, 16), 64), ((77, 24), 50), ((3, 130), 33)]
NAMES = ["x", "norm weight", "norm bias", "w1", "b1", "w2", "b2"]


def random_inputs(
    shape: Sequence[int], hidden: int, dtype: torch.dtype, device: str
) -> list[Tensor]:
    width = shape[-1]
    made = [
        2 * torch.randn(*shape) + 0.5,
        torch.randn(width) + 1,
        torch.randn(width),
        torch.randn(hidden, width) / width**0.5,
        torch.randn(hidden),
        torch.randn(width, hidden) / hidden**0.5,
        torch.randn(width),
    ]
    return [x.to(device, dtype).requires_grad_() for x in made]


def by_definition(leaves: list[Tensor]) -> Tensor:
    x, norm_weight, norm_bias, w1, b1, w2, b2 = leaves
    normal = layer_norm(x, norm_weight.shape, norm_weight, norm_bias)
    return x + linear(gelu(linear(normal, w1, b1)), w2, b2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(
    place: Place, dtype: torch.dtype, shape: tuple[tuple[int, ...], int]
) -> None:
    leaves = random_inputs(*shape, dtype, place.device)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    out, eager, truth = (
        fused_mlp(*leaves, impl=place.impl),
        by_definition(leaves),
        by_definition(exact),
    )
    assert_within_budget(out, eager, truth, "output")
    grad = torch.randn(shape[0]).to(place.device, dtype)
    compared = zip(
        gradients(out, leaves, grad),
        gradients(eager, leaves, grad),
        gradients(truth, exact, grad.double()),
        NAMES,
        strict=True,
    )
    for got, plain, true, what in compared:
        assert_within_budget(got, plain, true, f"gradient of {what}")


def test_more_rows_than_one_chunk(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    if place.impl == "triton":
        module = importlib.import_module("sjepa_kernels.blocks.fused_mlp")
        monkeypatch.setattr(module, "_CHUNK_NUMBERS", 40 * 70)
    rows = 300
    leaves = random_inputs((rows, 4), 40, torch.float64, place.device)
    out, truth = fused_mlp(*leaves, impl=place.impl), by_definition(leaves)
    grad = torch.randn(rows, 4, dtype=torch.float64).to(place.device)
    torch.testing.assert_close(out, truth, rtol=1e-11, atol=1e-11)
    ours, true = (gradients(o, leaves, grad) for o in (out, truth))
    torch.testing.assert_close(ours, true, rtol=1e-10, atol=1e-10)


def test_activation_far_from_zero(place: Place) -> None:
    """Large hidden units: gelu and its slope must reach 0 and 1, not NaN."""
    leaves = random_inputs((8, 16), 32, torch.float32, place.device)
    with torch.no_grad():
        leaves[3].mul_(50)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    out, eager, truth = (
        fused_mlp(*leaves, impl=place.impl),
        by_definition(leaves),
        by_definition(exact),
    )
    assert_within_budget(out, eager, truth, "output")
    grad = torch.randn(8, 16).to(out)
    for got, plain, true, what in zip(
        gradients(out, leaves, grad),
        gradients(eager, leaves, grad),
        gradients(truth, exact, grad.double()),
        NAMES,
        strict=True,
    ):
        assert_within_budget(got, plain, true, f"gradient of {what}")


def test_every_subset_of_gradients(place: Place) -> None:
    leaves = random_inputs((3, 6), 7, torch.float64, place.device)
    grad = torch.randn(3, 6, dtype=torch.float64).to(place.device)
    full = gradients(fused_mlp(*leaves, impl=place.impl), leaves, grad)
    for wanted in itertools.product([False, True], repeat=7):
        some = [x.detach().requires_grad_(w) for x, w in zip(leaves, wanted, strict=True)]
        out = fused_mlp(*some, impl=place.impl)
        assert out.requires_grad == any(wanted)
        if any(wanted):
            expected = [g for g, w in zip(full, wanted, strict=True) if w]
            got = gradients(out, some, grad)
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stream", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_chooses_the_products_dtype(place: Place, stream: torch.dtype) -> None:
    leaves = random_inputs((9, 32), 48, torch.float32, place.device)
    leaves[0] = leaves[0].detach().to(stream).requires_grad_()
    exact = [x.detach().double().requires_grad_() for x in leaves]
    truth = by_definition(exact)
    with torch.autocast(place.device, torch.bfloat16):
        out, eager = fused_mlp(*leaves, impl=place.impl), by_definition(leaves)
    assert_within_budget(out, eager, truth, "output")
    grad = torch.randn(9, 32).to(out)
    for got, plain, true, what in zip(
        gradients(out, leaves, grad),
        gradients(eager, leaves, grad),
        gradients(truth, exact, grad.double()),
        NAMES,
        strict=True,
    ):
        assert_within_budget(got, plain, true, f"gradient of {what}")


def test_strided_inputs_and_expanded_gradient(place: Place) -> None:
    leaves = random_inputs((3, 4, 6), 10, torch.float64, place.device)
    turned = [
        (x.detach().mT.contiguous().mT if x.ndim > 1 else x.detach().repeat_interleave(2)[::2])
        for x in leaves
    ]
    for x in turned:
        assert not x.is_contiguous()
        x.requires_grad_()
    out, plain = fused_mlp(*turned, impl=place.impl), fused_mlp(*leaves, impl=place.impl)
    torch.testing.assert_close(out, plain, rtol=1e-13, atol=1e-13)
    grad = torch.arange(6.0, dtype=torch.float64, device=place.device).expand(3, 4, 6)
    got, expected = gradients(out, turned, grad), gradients(plain, leaves, grad.contiguous())
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [((0, 4), 6), ((3, 4), 0)], ids=str)
def test_empty(place: Place, shape: tuple[tuple[int, ...], int]) -> None:
    sizes = [shape[0], *[shape[0][-1:]] * 2, (shape[1], shape[0][-1]), shape[1:]]
    sizes += [(shape[0][-1], shape[1]), shape[0][-1:]]
    leaves = [torch.ones(s, device=place.device, requires_grad=True) for s in sizes]
    out = fused_mlp(*leaves, impl=place.impl)
    truth = by_definition(leaves)
    torch.testing.assert_close(out, truth)
    grads = [gradients(o, leaves, torch.ones_like(o)) for o in (out, truth)]
    torch.testing.assert_close(*grads)


def test_repeats_bitwise(place: Place) -> None:
    leaves = random_inputs((150, 20), 40, torch.float32, place.device)
    runs = []
    for _ in range(2):
        out = fused_mlp(*leaves, impl=place.impl)
        runs.append([out, *gradients(out, leaves, torch.cos(out.detach() * 9))])
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


def test_gradcheck(place: Place) -> None:
    leaves = random_inputs((3, 4), 5, torch.float64, place.device)
    assert torch.autograd.gradcheck(lambda *args: fused_mlp(*args, impl=place.impl), leaves)


def test_opcheck(place: Place) -> None:
    if place.impl != "triton":
        pytest.skip("only the kernels are registered")
    leaves = random_inputs((4, 6), 10, torch.float32, place.device)
    op = torch.ops.sjepa.fused_mlp.default
    torch.library.opcheck(op, (*leaves, 1e-5, torch.float32))
    backward = torch.ops.sjepa.fused_mlp_backward.default
    with torch.no_grad():
        out, mean, rstd = op(*leaves, 1e-5, torch.float32)
        plain = [x.detach() for x in leaves]
        for needs in (True, False):
            args = (
                out[:1].expand(4, 6),
                plain[0],
                mean,
                rstd,
                *plain[1:6],
                1e-5,
                torch.float32,
                needs,
            )
            torch.library.opcheck(backward, args)


@compiles
def test_compiled_values_equal_eager(place: Place) -> None:
    leaves = random_inputs((4, 6), 10, torch.float32, place.device)

    def step(*leaves: Tensor) -> Tensor:
        return fused_mlp(leaves[0] * 2, *leaves[1:], impl=place.impl).sin()

    eager, compiled = step(*leaves), torch.compile(step, fullgraph=True)(*leaves)
    torch.testing.assert_close(compiled, eager)
    one = torch.ones_like(eager)
    torch.testing.assert_close(gradients(compiled, leaves, one), gradients(eager, leaves, one))


@compiles
def test_compiled_under_autocast(place: Place) -> None:
    leaves = random_inputs((4, 6), 10, torch.float32, place.device)

    def step(*leaves: Tensor) -> Tensor:
        with torch.autocast(place.device, torch.bfloat16):
            return fused_mlp(*leaves, impl=place.impl)

    torch.testing.assert_close(
        torch.compile(step, fullgraph=True)(*leaves), step(*leaves), rtol=2e-2, atol=2e-2
    )


def test_kernels_name_the_widest_row(place: Place) -> None:
    if place.impl != "triton":
        pytest.skip("the reference takes any width")
    leaves = random_inputs((1, 513), 2, torch.float32, place.device)
    with pytest.raises(ValueError, match=r'x: width 513; up to 512, or impl="torch"'):
        fused_mlp(*leaves, impl=place.impl)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.zeros(())}, ValueError, r"x: \(\); expected"),
        ({"x": torch.zeros(2, 0)}, ValueError, r"x: \(2, 0\); .*at least 1"),
        ({"x": torch.zeros(2, 3).int()}, TypeError, "x: torch.int32"),
        ({"norm_weight": torch.zeros(2)}, ValueError, r"norm_weight: \(2,\); expected \(D,\)"),
        ({"norm_bias": torch.zeros(3).int()}, TypeError, "norm_bias: torch.int32"),
        ({"w1": torch.zeros(3)}, ValueError, r"w1: \(3,\); expected \(H, D\)"),
        ({"w1": torch.zeros(5, 4)}, ValueError, r"w1: \(5, 4\); expected \(H, D\) = \(5, 3\)"),
        ({"b1": torch.zeros(3)}, ValueError, r"b1: \(3,\); expected \(H,\) = \(5,\)"),
        ({"w2": torch.zeros(5, 3)}, ValueError, r"w2: \(5, 3\); expected \(D, H\) = \(3, 5\)"),
        ({"b2": torch.zeros(3, device="meta")}, ValueError, "b2: meta; move it to cpu"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], error: type[Exception], words: str) -> None:
    good = {
        "x": torch.zeros(2, 3),
        "norm_weight": torch.zeros(3),
        "norm_bias": torch.zeros(3),
        "w1": torch.zeros(5, 3),
        "b1": torch.zeros(5),
        "w2": torch.zeros(3, 5),
        "b2": torch.zeros(3),
    }
    with pytest.raises(error, match=words):
        fused_mlp(*(good | change).values())
