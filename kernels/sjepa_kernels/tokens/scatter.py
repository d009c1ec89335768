# SPDX-License-Identifier: Apache-2.0
"""Visible tokens put back into the full grid, mask tokens elsewhere, positions added.

Shapes: B sequences, S segments, V joints, N = S*V tokens, K kept, D width.
"""

from typing import Any

from torch import Tensor

from sjepa_kernels._checks import check_distinct
from sjepa_kernels._dispatch import choose
from sjepa_kernels._library import Op
from sjepa_kernels._triton import TL_DTYPES, cdiv, compute_dtype, tl, triton
from sjepa_kernels.tokens.shared import (
    both_tables,
    check_tokens,
    position_table,
    promoted,
    row_tiles,
    table_gradients,
)


def scatter_mask_tokens_ref(*args: Tensor) -> Tensor:
    """Plain PyTorch form of `scatter_mask_tokens`, of the same arguments in their order."""
    visible_BKD, mask_token_D, ids_keep_BK, *tables = args
    stream = promoted([visible_BKD, mask_token_D, *tables])
    dtype = compute_dtype(stream)
    batch, _, width = visible_BKD.shape
    position_ND = position_table(tables, dtype)
    content = mask_token_D.to(dtype).expand(batch, position_ND.shape[0], width)
    index = ids_keep_BK.long()[:, :, None].expand(-1, -1, width)
    content = content.scatter(1, index, visible_BKD.to(dtype))
    return (content + position_ND).to(stream)


@triton.jit
def _rows_of(ids, b, K, N, n, BN: tl.constexpr, BK: tl.constexpr):
    """Which visible row holds each token n of sequence b (-1: none), and whether an id is bad."""
    row = tl.full((BN,), -1, tl.int32)
    bad = tl.full((), 0, tl.int32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        token = tl.load(ids + b * K + k, mask=k < K, other=0)
        hit = (token[None, :] == n[:, None]) & (k < K)[None, :]
        row = tl.maximum(row, tl.max(tl.where(hit, k[None, :], -1), axis=1))
        outside = ((token < 0) | (token >= N)) & (k < K)
        bad = tl.maximum(bad, tl.max(outside.to(tl.int32), axis=0))
    return row, bad


@triton.jit
def _scatter_forward_kernel(
    visible, mask_token, ids, temporal, spatial, out, K, N, V, D,
    COMPUTE: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    d = tl.program_id(2) * BD + tl.arange(0, BD)
    row, bad = _rows_of(ids, b, K, N, n, BN, BK)
    inside = (n < N)[:, None] & (d < D)[None, :]
    is_visible = (row >= 0)[:, None]
    kept = tl.load(
        visible + (b * K + row)[:, None] * D + d[None, :], mask=inside & is_visible, other=0.0
    ).to(COMPUTE)
    hidden = tl.load(mask_token + d, mask=d < D, other=0.0).to(COMPUTE)
    time = tl.load(temporal + (n // V)[:, None] * D + d[None, :], mask=inside, other=0.0)
    joint = tl.load(spatial + (n % V)[:, None] * D + d[None, :], mask=inside, other=0.0)
    x = tl.where(is_visible, kept, hidden[None, :]) + (time.to(COMPUTE) + joint.to(COMPUTE))
    x = tl.where(bad > 0, float("nan"), x)
    tl.store(out + (b * N + n)[:, None] * D + d[None, :], x, mask=inside)


@triton.jit
def _scatter_backward_kernel(
    grad, ids, grad_visible, position_part, hidden_part, B, K, N, D, chunk,
    NEEDS_VISIBLE: tl.constexpr, NEEDS_TABLES: tl.constexpr,
    COMPUTE: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    n = tile * BN + tl.arange(0, BN)
    d = tl.program_id(2) * BD + tl.arange(0, BD)
    inside = (n < N)[:, None] & (d < D)[None, :]
    position = tl.zeros((BN, BD), COMPUTE)
    hidden = tl.zeros((BN, BD), COMPUTE)
    for b in range(part * chunk, tl.minimum(part * chunk + chunk, B)):
        row, _bad = _rows_of(ids, b, K, N, n, BN, BK)
        g = tl.load(grad + (b * N + n)[:, None] * D + d[None, :], mask=inside, other=0.0)
        is_visible = (row >= 0)[:, None]
        if NEEDS_VISIBLE:
            place = grad_visible + (b * K + row)[:, None] * D + d[None, :]
            tl.store(place, g, mask=inside & is_visible)
        if NEEDS_TABLES:
            g_sum = g.to(COMPUTE)
            position += g_sum
            hidden += tl.where(is_visible, 0.0, g_sum)
    if NEEDS_TABLES:
        place = (part * N + n)[:, None] * D + d[None, :]
        tl.store(position_part + place, position, mask=inside)
        place = (part * tl.num_programs(1) + tile) * D + d
        tl.store(hidden_part + place, tl.sum(hidden, axis=0), mask=d < D)


def _forward(
    visible_BKD: Tensor, mask_token_D: Tensor, ids_keep_BK: Tensor,
    position_temporal_SD: Tensor, position_spatial_VD: Tensor,
) -> Tensor:  # fmt: skip
    batch, kept, width = visible_BKD.shape
    joints = position_spatial_VD.shape[0]
    tokens = position_temporal_SD.shape[0] * joints
    stream = promoted([visible_BKD, mask_token_D, position_temporal_SD, position_spatial_VD])
    out = visible_BKD.new_empty(batch, tokens, width, dtype=stream)
    if out.numel():
        tile, columns = row_tiles(width)
        _scatter_forward_kernel[(batch, cdiv(tokens, tile), cdiv(width, columns))](
            visible_BKD.contiguous(), mask_token_D.contiguous(), ids_keep_BK.contiguous(),
            position_temporal_SD.contiguous(), position_spatial_VD.contiguous(),
            out, kept, tokens, joints, width,
            COMPUTE=TL_DTYPES[compute_dtype(out.dtype)], BN=tile, BK=128, BD=columns,
        )  # fmt: skip
    return out


def _forward_fake(*inputs: Any) -> Tensor:
    visible_BKD, mask_token_D, _, *tables = inputs
    batch, _, width = visible_BKD.shape
    tokens = tables[0].shape[0] * tables[1].shape[0]
    dtype = promoted([visible_BKD, mask_token_D, *tables])
    out: Tensor = visible_BKD.new_empty(batch, tokens, width, dtype=dtype)
    return out


def _sums(
    grad_BND: Tensor, ids_keep_BK: Tensor, needs_visible: bool, needs_tables: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the visible tokens' gradient and two sums of `grad`: by token, and where hidden."""
    batch, tokens, width = grad_BND.shape
    kept = ids_keep_BK.shape[1]
    dtype = compute_dtype(grad_BND.dtype)
    # Zeros: should an id stand twice in a row, the copy that lost has no gradient.
    grad_visible = grad_BND.new_zeros((batch, kept, width) if needs_visible else (0,))
    rows = tokens if needs_tables else 0
    if grad_BND.numel() == 0:
        table = grad_BND.new_zeros((rows, width), dtype=dtype)
        return grad_visible, table, table.sum(0)
    tile, columns = row_tiles(width)
    tiles = cdiv(tokens, tile)
    # Enough programs to fill a large GPU; a function of the shapes alone, so sums repeat bitwise.
    chunk = cdiv(batch, min(batch, max(1, 1024 // tiles)))
    parts = cdiv(batch, chunk)
    position_part = grad_BND.new_empty((parts, rows, width), dtype=dtype)
    hidden_part = grad_BND.new_empty((parts * tiles if rows else 0, width), dtype=dtype)
    _scatter_backward_kernel[(parts, tiles, cdiv(width, columns))](
        grad_BND.contiguous(), ids_keep_BK.contiguous(), grad_visible, position_part, hidden_part,
        batch, kept, tokens, width, chunk,
        NEEDS_VISIBLE=needs_visible, NEEDS_TABLES=needs_tables,
        COMPUTE=TL_DTYPES[dtype], BN=tile, BK=128, BD=columns,
    )  # fmt: skip
    return grad_visible, position_part.sum(0), hidden_part.sum(0)


def _sums_fake(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    grad_BND, ids_keep_BK, needs_visible, needs_tables = inputs
    batch, tokens, width = grad_BND.shape
    dtype = compute_dtype(grad_BND.dtype)
    shape = (batch, ids_keep_BK.shape[1], width) if needs_visible else (0,)
    table = grad_BND.new_empty((tokens if needs_tables else 0, width), dtype=dtype)
    return grad_BND.new_empty(shape), table, grad_BND.new_empty(width, dtype=dtype)


_sums_op = Op("scatter_mask_tokens_backward", _sums, _sums_fake)


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    visible, mask_token, ids_keep, temporal, spatial = inputs
    ctx.save_for_backward(ids_keep)
    ctx.sizes = temporal.shape[0], spatial.shape[0]
    ctx.dtypes = visible.dtype, mask_token.dtype, temporal.dtype, spatial.dtype


def _backward(ctx: Any, grad_BND: Tensor) -> tuple[Tensor | None, ...]:
    (ids_keep,) = ctx.saved_tensors
    needs_visible, needs_mask, _, *needs_position = ctx.needs_input_grad
    grad_visible, position_ND, hidden_D = _sums_op(
        grad_BND, ids_keep, needs_visible, needs_mask or any(needs_position)
    )
    visible_dtype, mask_dtype, *table_dtypes = ctx.dtypes
    temporal, spatial = table_gradients(position_ND, ctx.sizes, needs_position, table_dtypes)
    visible = grad_visible.to(visible_dtype) if needs_visible else None
    mask = hidden_D.to(mask_dtype) if needs_mask else None
    return visible, mask, None, temporal, spatial


_op = Op("scatter_mask_tokens", _forward, _forward_fake, setup=_setup, backward=_backward)


def scatter_mask_tokens(
    visible_BKD: Tensor,
    mask_token_D: Tensor,
    ids_keep_BK: Tensor,
    position_temporal_SD: Tensor,
    position_spatial_VD: Tensor | None = None,
    *,
    impl: str = "auto",
) -> Tensor:
    """Build the predictor's full token grid.

    out[b, n] = (visible[b, k] if ids_keep[b, k] == n else mask_token) + pos[n], with
    pos[s V + v] = temporal[s] + spatial[v]; the sum is formed in float32 (float64 for float64)
    and rounded once. What MAE-style decoders write as repeat, cat, gather and two adds.

    Args:
        visible_BKD: Visible tokens; any K from 0 to N.
        mask_token_D: The token that stands for what is hidden.
        ids_keep_BK: int32 or int64 token ids of the visible tokens, in any order, none twice in
            a row. Ids on an accelerator are not read to check that: of two equal ones the last
            is used and the other has no gradient.
        position_temporal_SD: One row per segment; without the second table one row per token.
        position_spatial_VD: One row per joint.
        impl: "auto", "triton", "cpu" or "torch".

    Returns:
        (B, N, D) in the dtype to which torch promotes those of the four float inputs, as its own
        addition and `cat` do; differentiable in all four.

    Raises:
        TypeError: A dtype is not usable.
        ValueError: A shape, device, id or `impl` is not usable.
    """
    tables = both_tables(position_temporal_SD, position_spatial_VD)
    check_tokens(visible_BKD, mask_token_D, {"ids_keep": ids_keep_BK}, *tables)
    check_distinct("ids_keep", ids_keep_BK, tables[0].shape[0] * tables[1].shape[0])
    args = (visible_BKD, mask_token_D, ids_keep_BK, *tables)
    if choose(impl, visible_BKD.device) == "torch":
        return scatter_mask_tokens_ref(*args)
    out: Tensor = _op(*args)
    return out
