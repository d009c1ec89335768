"""Linear layers that compute their input again: the same numbers, and less kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sjepa_fast.models.recompute import gelu_linear, norm_linear
from tests.kernels.cases import compiles

Case = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], list[nn.Parameter]]


def case(name: str, dtype: torch.dtype = torch.float32) -> Case:
    """The op, its plain form and their parameters."""
    torch.manual_seed(0)
    norm, layer = nn.LayerNorm(24).to(dtype), nn.Linear(24, 40).to(dtype)
    for weight in norm.parameters():
        nn.init.normal_(weight)
    if name == "norm":
        weights = [*norm.parameters(), *layer.parameters()]
        return lambda x: norm_linear(x, norm, layer), lambda x: layer(norm(x)), weights
    plain = lambda x: layer(nn.functional.gelu(x))  # noqa: E731
    return lambda x: gelu_linear(x, layer), plain, list(layer.parameters())


def both(found: Case, x: Tensor, grad: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Value and gradients of the op and of its plain form, in pairs."""
    ours, plain, weights = found
    return list(
        zip(
            *(
                (out := form(x), *torch.autograd.grad(out, [x, *weights], grad.to(out)))
                for form in (ours, plain)
            ),
            strict=True,
        )
    )


@pytest.mark.parametrize("name", ["norm", "gelu"])
@pytest.mark.parametrize("shape", [(24,), (7, 24), (2, 5, 24)], ids=str)
def test_value_and_gradients_are_those_of_the_layers(name: str, shape: tuple[int, ...]) -> None:
    found = case(name, torch.float64)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(*shape[:-1], 40, dtype=torch.float64)
    for ours, plain in both(found, x, grad):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["norm", "gelu"])
@pytest.mark.parametrize("stream", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_gives_the_bits_that_the_layers_give(name: str, stream: torch.dtype) -> None:
    found = case(name)
    x = torch.randn(4, 6, 24).to(stream).requires_grad_()
    grad = torch.randn(4, 6, 40)
    with torch.autocast("cpu", torch.bfloat16):
        pairs = both(found, x, grad)
    for ours, plain in pairs:
        assert ours.dtype == plain.dtype
        assert torch.equal(ours, plain)


@pytest.mark.parametrize("name", ["norm", "gelu"])
def test_only_the_input_is_kept(name: str) -> None:
    ours, plain, weights = case(name)
    x = torch.randn(512, 24, requires_grad=True)
    held: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        held[saved.data_ptr()] = saved.nbytes
        return saved

    kept = []
    for form in (ours, plain):
        held.clear()
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved),
            torch.autocast("cpu", torch.bfloat16),
        ):
            out = form(x)
        del out
        kept.append(sum(held.values()) - sum(held.pop(p.data_ptr(), 0) for p in weights))
    a_number_a_row = 2 * 512 * 4 if name == "norm" else 0
    assert x.nbytes <= kept[0] <= x.nbytes + a_number_a_row + sum(p.nbytes for p in weights)
    assert kept[1] - kept[0] >= x.numel() * 2


@compiles
@pytest.mark.parametrize("name", ["norm", "gelu"])
def test_compiles_whole(name: str) -> None:
    ours, plain, weights = case(name)
    x = torch.randn(3, 24, requires_grad=True)
    grad = torch.randn(3, 40)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for found, truth in both((compiled, plain, weights), x, grad):
        torch.testing.assert_close(found, truth)
