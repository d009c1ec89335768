"""The fused MLP against float64, in every implementation that runs here."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear

from sjepa_kernels import fused_mlp
from tests.kernels.cases import Place, assert_learns_within_budget, compiles, gradients, in_float64

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Leading axes and D, and H: one row, odd sizes, exact tiles, broken tiles of rows and hidden units.
SHAPES = [((1, 2), 1), ((2, 3, 5), 20), ((64, 16), 64), ((77, 24), 50), ((3, 130), 33)]


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
    exact = in_float64(leaves)
    out, eager = fused_mlp(*leaves, impl=place.impl), by_definition(leaves)
    truth = by_definition(exact)
    assert_learns_within_budget(out, eager, truth, leaves, exact)


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
    exact = in_float64(leaves)
    out, eager = fused_mlp(*leaves, impl=place.impl), by_definition(leaves)
    truth = by_definition(exact)
    assert_learns_within_budget(out, eager, truth, leaves, exact)


@pytest.mark.parametrize("stream", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_chooses_the_products_dtype(place: Place, stream: torch.dtype) -> None:
    leaves = random_inputs((9, 32), 48, torch.float32, place.device)
    leaves[0] = leaves[0].detach().to(stream).requires_grad_()
    exact = in_float64(leaves)
    truth = by_definition(exact)
    with torch.autocast(place.device, torch.bfloat16):
        out, eager = fused_mlp(*leaves, impl=place.impl), by_definition(leaves)
    assert_learns_within_budget(out, eager, truth, leaves, exact)


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
