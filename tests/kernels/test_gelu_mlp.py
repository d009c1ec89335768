"""The MLP behind a norm against float64, in every implementation that runs here."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

from sjepa_kernels import gelu_mlp
from sjepa_kernels._triton import INTERPRETED
from tests.kernels.cases import (
    Place,
    assert_learns_within_budget,
    assert_within_budget,
    compiles,
    gradients,
    in_float64,
)

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Leading axes and D, and H: one row, odd sizes, exact tiles, broken tiles of rows and hidden units,
# wider rows than the kernels hold.
SHAPES = [((1, 2), 30), ((2, 3, 5), 1), ((128, 32), 128), ((131, 24), 150), ((3, 260), 33)]


def random_inputs(
    shape: Sequence[int], hidden: int, dtype: torch.dtype, device: str
) -> list[Tensor]:
    width = shape[-1]
    made = [
        torch.randn(*shape),
        2 * torch.randn(hidden, width) / width**0.5,
        torch.randn(hidden),
        torch.randn(width, hidden) / max(hidden, 1) ** 0.5,
        torch.randn(width),
    ]
    return [x.to(device, dtype).requires_grad_() for x in made]


def by_definition(leaves: Sequence[Tensor]) -> Tensor:
    x, w1, b1, w2, b2 = leaves
    return linear(gelu(linear(x, w1, b1)), w2, b2)


def use_the_kernels(monkeypatch: pytest.MonkeyPatch, place: Place) -> None:
    """Let the kernels do the products in any dtype."""
    if place.impl == "triton":
        module = importlib.import_module("sjepa_kernels.blocks.gelu_mlp")
        monkeypatch.setattr(module, "_takes", lambda width, dot: True)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(
    place: Place, dtype: torch.dtype, shape: tuple[tuple[int, ...], int], keep: bool
) -> None:
    leaves = random_inputs(*shape, dtype, place.device)
    exact = in_float64(leaves)
    out = gelu_mlp(*leaves, keep=keep, impl=place.impl)
    # The interpreter cuts the hidden layer down where hardware rounds it, and then what follows.
    extra = 8e-3 if INTERPRETED and dtype == torch.bfloat16 else 0.0
    if place.impl == "triton" and dtype.itemsize == 2:
        # The slope is rounded to the dtype.
        extra += torch.finfo(dtype).eps / 2
    eager, truth = by_definition(leaves), by_definition(exact)
    assert_learns_within_budget(out, eager, truth, leaves, exact, extra)


@pytest.mark.parametrize("keep", [True, False])
def test_the_kernels_formula_in_float64(
    place: Place, keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last digits, which half precision cannot show."""
    use_the_kernels(monkeypatch, place)
    leaves = random_inputs((150, 20), 70, torch.float64, place.device)
    out, truth = gelu_mlp(*leaves, keep=keep, impl=place.impl), by_definition(leaves)
    torch.testing.assert_close(out, truth, rtol=1e-11, atol=1e-11)
    grad = torch.randn(150, 20, dtype=torch.float64).to(place.device)
    ours, true = (gradients(o, leaves, grad) for o in (out, truth))
    torch.testing.assert_close(ours, true, rtol=1e-10, atol=1e-10)


def test_more_rows_than_programs(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    if place.impl == "triton":
        module = importlib.import_module("sjepa_kernels.blocks.gelu_mlp")
        monkeypatch.setattr(module, "_PROGRAMS", 3)
    leaves = random_inputs((333, 10), 140, torch.float64, place.device)
    grad = torch.randn(333, 10, dtype=torch.float64, device=place.device)
    ours = gradients(gelu_mlp(*leaves, impl=place.impl), leaves, grad)
    torch.testing.assert_close(ours, gradients(by_definition(leaves), leaves, grad))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_activation_far_from_zero(place: Place, dtype: torch.dtype) -> None:
    """Large hidden units: gelu and its slope must reach 0 and 1, not NaN."""
    leaves = random_inputs((8, 16), 32, dtype, place.device)
    with torch.no_grad():
        leaves[1].mul_(50)
    exact = in_float64(leaves)
    out = gelu_mlp(*leaves, impl=place.impl)
    assert_learns_within_budget(out, by_definition(leaves), by_definition(exact), leaves, exact)


def test_the_activation_everywhere(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 by the short form that half precision gets: a tenth of float16's rounding off."""
    if place.impl == "triton":
        use_the_kernels(monkeypatch, place)
        module = importlib.import_module("sjepa_kernels.blocks.gelu_mlp")
        options = module._options
        monkeypatch.setattr(module, "_options", lambda *a: options(*a) | {"SHORT": True})
    x = torch.linspace(-9, 9, 1001, device=place.device)[:, None].requires_grad_()
    one, zero = torch.ones(1, 1, device=place.device), torch.zeros(1, device=place.device)
    out = gelu_mlp(x, one, zero, one, zero, impl=place.impl)
    (slope,) = torch.autograd.grad(out.sum(), x)
    exact = x.detach().double().requires_grad_()
    truth = gelu(exact)
    (true_slope,) = torch.autograd.grad(truth.sum(), exact)
    off, slope_off = (out.detach().double() - truth.detach()).abs(), slope.double() - true_slope
    short = place.impl == "triton"
    assert off.max() <= (5e-6 if short else 1e-6)
    assert slope_off.abs().max() <= (2.5e-5 if short else 5e-7)
    # Also relative to what is left of a large negative number.
    left = (exact > -8) & (exact < 0)
    size = (exact * torch.special.erfc(-exact / 2**0.5) / 2).detach().abs()
    off = (out.detach().double() + size).abs()
    assert (off[left] / size[left]).max() <= (5e-5 if short else 1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_making_the_activation_again_changes_no_bit(place: Place, dtype: torch.dtype) -> None:
    leaves = random_inputs((140, 24), 70, dtype, place.device)
    grad = torch.randn(140, 24).to(place.device, dtype)
    runs = []
    for keep in (True, False):
        out = gelu_mlp(*leaves, keep=keep, impl=place.impl)
        runs.append([out.detach(), *gradients(out, leaves, grad)])
    with torch.no_grad():
        assert torch.equal(gelu_mlp(*leaves, impl=place.impl), runs[0][0])
    for kept, made in zip(*runs, strict=True):
        assert torch.equal(kept, made)


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.float16], ids=str)
def test_autocast_chooses_the_products_dtype(place: Place, x_dtype: torch.dtype) -> None:
    leaves = random_inputs((9, 32), 48, torch.float32, place.device)
    leaves[0] = leaves[0].detach().to(x_dtype).requires_grad_()
    exact = in_float64(leaves)
    with torch.autocast(place.device, torch.float16):
        out, eager = gelu_mlp(*leaves, impl=place.impl), by_definition(leaves)
    assert out.dtype == torch.float16
    assert_learns_within_budget(out, eager, by_definition(exact), leaves, exact)


def test_parameters_of_other_dtypes(place: Place) -> None:
    """As of a norm's output in half precision before layers in float32."""
    leaves = random_inputs((9, 32), 48, torch.float32, place.device)
    leaves[0] = leaves[0].detach().bfloat16().requires_grad_()
    half = [x.detach().bfloat16().requires_grad_() for x in leaves]
    out, eager, truth = (
        gelu_mlp(*leaves, impl=place.impl),
        by_definition(half),
        by_definition(exact := in_float64(leaves)),
    )
    grad = torch.randn(9, 32).to(place.device)
    found = gradients(out, leaves, grad.to(out.dtype))
    assert [g.dtype for g in found] == [p.dtype for p in leaves]
    plain, true = gradients(eager, half, grad.bfloat16()), gradients(truth, exact, grad.double())
    assert_within_budget(out, eager, truth, "output")
    for k, (mine, theirs, exactly) in enumerate(zip(found, plain, true, strict=True)):
        # Half precision's slack, whatever the dtype that the result is returned in.
        assert_within_budget(mine.bfloat16(), theirs, exactly, f"gradient {k}", extra=4e-3)


@pytest.mark.parametrize("shape", [((0, 4), 6), ((3, 4), 0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_empty(place: Place, shape: tuple[tuple[int, ...], int], dtype: torch.dtype) -> None:
    leaves = random_inputs(*shape, dtype, place.device)
    out = gelu_mlp(*leaves, impl=place.impl)
    truth = by_definition(leaves)
    torch.testing.assert_close(out, truth)
    grads = [gradients(o, leaves, torch.ones_like(o)) for o in (out, truth)]
    torch.testing.assert_close(*grads)


@compiles
@pytest.mark.parametrize("keep", [True, False])
def test_compiled_under_autocast(place: Place, keep: bool) -> None:
    leaves = random_inputs((4, 6), 10, torch.float32, place.device)

    def step(*leaves: Tensor) -> Tensor:
        with torch.autocast(place.device, torch.bfloat16):
            return gelu_mlp(*leaves, keep=keep, impl=place.impl)

    runs = []
    for form in (step, torch.compile(step, fullgraph=True)):
        out = form(*leaves)
        runs.append([out, *gradients(out, leaves, torch.ones_like(out))])
    torch.testing.assert_close(*runs, rtol=2e-2, atol=2e-2)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(step, fullgraph=True)(*leaves), runs[0][0])
