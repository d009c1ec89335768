"""Scatter and pack of tokens against float64, in every implementation that runs here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sjepa_kernels import pack_tokens, scatter_mask_tokens
from tests.kernels.cases import Place, assert_learns_within_budget, gradients, in_float64, leaves_of

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# B, S, V, D, K: odd sizes, no and all tokens visible, single everything, more ids than one block,
# more columns than one tile, a tenth of 750 tokens rounded either way.
SHAPES = [
    (2, 3, 5, 7, 4),
    (3, 2, 13, 40, 0),
    (2, 2, 3, 33, 6),
    (1, 1, 1, 1, 1),
    (1, 9, 15, 20, 131),
    (2, 2, 5, 260, 3),
    (1, 30, 25, 3, 74),
    (1, 30, 25, 3, 75),
]
OPS = ["scatter", "pack"]
Op = Callable[..., Tensor]


def random_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, device: str, ids: torch.dtype = torch.int64
) -> tuple[list[Tensor], Tensor]:
    batch, segments, joints, width, kept = shape
    order = torch.stack([torch.randperm(segments * joints) for _ in range(batch)]).to(device, ids)
    sizes = [(batch, kept, width), (width,), (segments, width), (joints, width)]
    return [torch.randn(s).to(device, dtype).requires_grad_() for s in sizes], order


def op_for(name: str, order: Tensor, kept: int, impl: str) -> Op:
    keep, hide = order[:, :kept], order[:, kept:]
    if name == "scatter":
        return lambda x, m, t, s: scatter_mask_tokens(x, m, keep, t, s, impl=impl)
    return lambda x, m, t, s: pack_tokens(x, m, keep, hide, t, s, impl=impl)


def by_definition(name: str, order: Tensor, leaves: list[Tensor], kept: int) -> Tensor:
    """The formula, token by token, in float64."""
    visible, mask_token, temporal, spatial = leaves
    joints = spatial.shape[0]
    rows = []
    for b in range(order.shape[0]):
        row = {}
        for place_, token in enumerate(order[b].tolist()):
            content = visible[b, place_] if place_ < kept else mask_token
            row[token] = content + temporal[token // joints] + spatial[token % joints]
        tokens = sorted(row) if name == "scatter" else order[b].tolist()
        rows.append(torch.stack([row[token] for token in tokens]))
    return torch.stack(rows)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients(place: Place, name: str, dtype: torch.dtype, shape: tuple) -> None:
    ids = torch.int32 if dtype == torch.float32 else torch.int64
    leaves, order = random_inputs(shape, dtype, place.device, ids)
    kept = shape[4]
    out = op_for(name, order, kept, place.impl)(*leaves)
    eager = op_for(name, order, kept, "torch")(*leaves)
    exact = in_float64(leaves)
    truth = by_definition(name, order, exact, kept)
    assert_learns_within_budget(out, eager, truth, leaves, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7, 4), (3, 2, 2, 33, 0)], ids=str)
def test_several_targets_of_one_context(place: Place, dtype: torch.dtype, shape: tuple) -> None:
    """Equal to packing a repeated context, and its gradient is the sum over the repeats."""
    leaves, order = random_inputs(shape, dtype, place.device)
    kept = shape[4]
    keep = order[:, :kept]
    hide = torch.cat([order[:, kept : kept + 2], order[:, kept + 1 : kept + 3], order[:, :2]])

    def pack(values: list[Tensor], impl: str) -> Tensor:
        visible, mask_token, *tables = values
        return pack_tokens(visible, mask_token, keep, hide, *tables, repeat=3, impl=impl)

    exact = in_float64(leaves)
    visible, mask_token, temporal, spatial = exact
    position = (temporal[:, None] + spatial).flatten(0, 1)
    rows = [(visible + position[keep]).repeat(3, 1, 1), mask_token + position[hide]]
    out = pack(leaves, place.impl)
    assert_learns_within_budget(out, pack(leaves, "torch"), torch.cat(rows, 1), leaves, exact)


def test_as_many_rows_of_targets_as_named(place: Place) -> None:
    leaves, order = random_inputs((2, 2, 3, 5, 2), torch.float32, place.device)
    visible, mask_token, *tables = leaves
    hide = order[:, 2:].repeat(2, 1)
    with pytest.raises(ValueError, match=r"ids_mask: \(4, 4\); expected \(3 B, Q\)"):
        pack_tokens(visible, mask_token, order[:, :2], hide, *tables, repeat=3, impl=place.impl)
    with pytest.raises(ValueError, match="repeat: 0; at least one target"):
        pack_tokens(visible, mask_token, order[:, :2], hide, *tables, repeat=0, impl=place.impl)


@pytest.mark.parametrize("name", OPS)
def test_one_free_table_of_positions(place: Place, name: str) -> None:
    leaves, order = random_inputs((2, 7, 1, 5, 3), torch.float32, place.device)
    free = leaves[2]
    op = op_for(name, order, 3, place.impl)
    out = op(*leaves[:3], None)
    exact = in_float64(leaves[:3])
    zeros = torch.zeros(1, 5, dtype=torch.float64, device=place.device)
    truth = by_definition(name, order, [*exact, zeros], 3)
    eager = op_for(name, order, 3, "torch")(*leaves[:3], None)
    assert free.shape == (7, 5)
    assert_learns_within_budget(out, eager, truth, leaves[:3], exact)


@pytest.mark.parametrize("name", OPS)
def test_empty_batch(place: Place, name: str) -> None:
    leaves, order = random_inputs((1, 2, 3, 4, 2), torch.float32, place.device)
    leaves[0] = leaves[0].detach()[:0].requires_grad_()
    out = op_for(name, order[:0], 2, place.impl)(*leaves)
    assert out.shape == (0, 6, 4)
    for leaf, grad in zip(leaves, gradients(out, leaves, torch.ones_like(out)), strict=True):
        assert torch.equal(grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("name", OPS)
def test_tables_without_rows(place: Place, name: str) -> None:
    leaves, order = random_inputs((2, 0, 3, 40, 0), torch.float32, place.device)
    out = op_for(name, order.view(2, 0), 0, place.impl)(*leaves)
    assert out.shape == (2, 0, 40)
    for leaf, grad in zip(leaves, gradients(out, leaves, torch.ones_like(out)), strict=True):
        assert torch.equal(grad, torch.zeros_like(leaf))


def test_pack_is_the_scattered_grid_in_packed_order(place: Place) -> None:
    leaves, order = random_inputs((2, 3, 4, 5, 5), torch.float64, place.device)
    grid = op_for("scatter", order, 5, place.impl)(*leaves)
    packed = op_for("pack", order, 5, place.impl)(*leaves)
    assert torch.equal(grid.gather(1, order[:, :, None].expand_as(grid)), packed)


def test_pack_may_leave_out_and_repeat_tokens(place: Place) -> None:
    leaves, _ = random_inputs((1, 2, 3, 4, 3), torch.float64, place.device)
    keep = torch.tensor([[1, 1, 4]], device=place.device)
    hide = torch.tensor([[4, 0]], device=place.device)
    args = (*leaves[:2], keep, hide, *leaves[2:])
    ours, eager = (pack_tokens(*args, impl=impl) for impl in (place.impl, "torch"))
    torch.testing.assert_close(ours, eager)
    grad = torch.randn(ours.shape, dtype=torch.float64).to(place.device)
    for got, expected in zip(
        gradients(ours, leaves, grad), gradients(eager, leaves, grad), strict=True
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", OPS)
def test_kernels_turn_bad_ids_into_nan(place: Place, name: str) -> None:
    if place.impl != "triton":
        pytest.skip("the reference checks ids")
    leaves, order = random_inputs((2, 2, 3, 5, 2), torch.float32, place.device)
    order[1, 0] = 6
    ids = (order[:, :2],) if name == "scatter" else (order[:, :2], order[:, 2:])
    body = {"scatter": torch.ops.sjepa.scatter_mask_tokens, "pack": torch.ops.sjepa.pack_tokens}
    out = body[name](*(x.detach() for x in leaves[:2]), *ids, *(x.detach() for x in leaves[2:]))
    assert torch.isfinite(out[0]).all()
    assert torch.isnan(out[1] if name == "scatter" else out[1, 0]).all()


@pytest.mark.parametrize("op", ["pack", "scatter"])
def test_the_stream_has_the_dtype_to_which_torch_promotes(place: Place, op: str) -> None:
    """Under autocast a linear layer gives bfloat16, whose sum with float32 tables is float32."""
    torch.manual_seed(0)
    visible, mask, *tables = leaves_of(place, (2, 3, 8), (8,), (2, 8), (3, 8))
    narrow = visible.detach().bfloat16().requires_grad_()
    order = torch.stack([torch.randperm(6) for _ in range(2)]).to(place.device)
    keep, hide = order[:, :3], order[:, 3:]

    def build(x: Tensor, impl: str) -> Tensor:
        if op == "pack":
            return pack_tokens(x, mask, keep, hide, *tables, impl=impl)
        return scatter_mask_tokens(x, mask, keep, *tables, impl=impl)

    out, wide = build(narrow, place.impl), build(narrow.detach().float(), "torch")
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, wide)
    grad = torch.randn(out.shape, device=place.device)
    (ours,) = torch.autograd.grad(out, narrow, grad)
    assert ours.dtype == torch.bfloat16
    same = visible.detach().requires_grad_()
    (exact,) = torch.autograd.grad(build(same, "torch"), same, grad)
    torch.testing.assert_close(ours, exact.bfloat16())
