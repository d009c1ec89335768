# SPDX-License-Identifier: Apache-2.0
"""Visible tokens followed by mask tokens, each with its position: a grid that needs no scatter.

Shapes: B sequences, S segments, V joints, N = S*V tokens, K kept, Q masked, D width; P targets per
sequence, P B rows of ids to predict, all first targets before all second ones.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

from sjepa_kernels._checks import bad_value
from sjepa_kernels._dispatch import choose
from sjepa_kernels._library import Op
from sjepa_kernels._triton import INTERPRETED, TL_DTYPES, cdiv, compute_dtype, tl, triton
from sjepa_kernels.tokens.shared import (
    both_tables,
    check_tokens,
    position_table,
    promoted,
    row_tiles,
)


def pack_tokens_ref(*args: Tensor) -> Tensor:
    """Plain PyTorch form of `pack_tokens`, of the same arguments in their order."""
    visible_BKD, mask_token_D, ids_keep_BK, ids_mask_BQ, *tables = args
    stream = promoted([visible_BKD, mask_token_D, *tables])
    position_ND = position_table(tables, compute_dtype(stream))
    kept = visible_BKD + embedding(ids_keep_BK, position_ND)
    kept = kept.repeat(_targets(visible_BKD, ids_mask_BQ), 1, 1)
    masked = mask_token_D + embedding(ids_mask_BQ, position_ND)
    return torch.cat([kept, masked], dim=1).to(stream)


def _targets(visible_BKD: Tensor, ids_mask_PBQ: Tensor) -> int:
    """Return P."""
    return ids_mask_PBQ.shape[0] // max(visible_BKD.shape[0], 1)


@triton.jit
def _pack_forward_kernel(
    visible, mask_token, ids_keep, ids_mask, temporal, spatial, out, B, K, Q, N, V, D,
    COMPUTE: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    context = b % B
    r = tl.program_id(1) * BR + tl.arange(0, BR)
    d = tl.program_id(2) * BD + tl.arange(0, BD)
    is_visible = r < K
    inside = r < K + Q
    keep = tl.load(ids_keep + context * K + r, mask=is_visible, other=0).to(tl.int64)
    hide = tl.load(ids_mask + b * Q + (r - K), mask=inside & (r >= K), other=0).to(tl.int64)
    token = tl.where(is_visible, keep, hide)
    good = (token >= 0) & (token < N)
    in_d = (d < D)[None, :]
    row = (context * K + r)[:, None] * D + d[None, :]
    kept = tl.load(visible + row, mask=is_visible[:, None] & in_d, other=0.0).to(COMPUTE)
    hidden = tl.load(mask_token + d, mask=d < D, other=0.0).to(COMPUTE)
    known = good[:, None] & in_d
    time = tl.load(temporal + (token // V)[:, None] * D + d[None, :], mask=known, other=0.0)
    joint = tl.load(spatial + (token % V)[:, None] * D + d[None, :], mask=known, other=0.0)
    x = tl.where(is_visible[:, None], kept, hidden[None, :])
    x += time.to(COMPUTE) + joint.to(COMPUTE)
    x = tl.where(good[:, None], x, float("nan"))
    place = out + (b * (K + Q) + r)[:, None] * D + d[None, :]
    tl.store(place, x, mask=inside[:, None] & in_d)


@triton.jit
def _pack_backward_kernel(
    grad, ids_keep, ids_mask, temporal_part, spatial_part, hidden_part,
    B, rows, K, Q, S, V, D, chunk,
    COMPUTE: tl.constexpr, UPCAST: tl.constexpr,
    BT: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * BT + tl.arange(0, BT)
    d = tl.program_id(2) * BD + tl.arange(0, BD)
    in_d = (d < D)[None, :]
    temporal = tl.zeros((BT, BD), COMPUTE)
    spatial = tl.zeros((BT, BD), COMPUTE)
    hidden = tl.zeros((BD,), COMPUTE)
    for b in range(part * chunk, tl.minimum(part * chunk + chunk, rows)):
        for start in range(0, K + Q, BR):
            r = start + tl.arange(0, BR)
            inside = r < K + Q
            keep = tl.load(ids_keep + (b % B) * K + r, mask=r < K, other=0).to(tl.int32)
            hide = tl.load(ids_mask + b * Q + (r - K), mask=inside & (r >= K), other=0)
            token = tl.where(r < K, keep, hide.to(tl.int32))
            place = grad + (b * (K + Q) + r)[:, None] * D + d[None, :]
            g = tl.load(place, mask=inside[:, None] & in_d, other=0.0)
            if UPCAST:
                g = g.to(COMPUTE)
            # Rows of equal segment (or joint) are summed by a product with a 0/1 matrix: exact,
            # free of atomics, and right for ids that repeat.
            of_segment = ((token // V)[None, :] == t[:, None]).to(g.dtype)
            of_joint = ((token % V)[None, :] == t[:, None]).to(g.dtype)
            temporal = tl.dot(of_segment, g, temporal, input_precision="ieee", out_dtype=COMPUTE)
            spatial = tl.dot(of_joint, g, spatial, input_precision="ieee", out_dtype=COMPUTE)
            hidden += tl.sum(tl.where((r >= K)[:, None], g.to(COMPUTE), 0.0), axis=0)
    place = (part * S + t)[:, None] * D + d[None, :]
    tl.store(temporal_part + place, temporal, mask=(t < S)[:, None] & in_d)
    place = (part * V + t)[:, None] * D + d[None, :]
    tl.store(spatial_part + place, spatial, mask=(t < V)[:, None] & in_d)
    first = (tl.program_id(1) == 0) & (d < D)
    tl.store(hidden_part + part * D + d, hidden, mask=first)


def write_packed(
    out: Tensor, visible_BKD: Tensor, mask_token_D: Tensor, ids_keep_BK: Tensor,
    ids_mask_BQ: Tensor, position_temporal_SD: Tensor, position_spatial_VD: Tensor,
) -> Tensor:  # fmt: skip
    """Fill `out`, (P B, K + Q, D) of any dtype, and return it."""
    kept, masked, joints = ids_keep_BK.shape[1], ids_mask_BQ.shape[1], position_spatial_VD.shape[0]
    rows, tokens, width = out.shape
    if out.numel():
        tile, columns = row_tiles(width)
        _pack_forward_kernel[(rows, cdiv(tokens, tile), cdiv(width, columns))](
            visible_BKD.contiguous(), mask_token_D.contiguous(),
            ids_keep_BK.contiguous(), ids_mask_BQ.contiguous(),
            position_temporal_SD.contiguous(), position_spatial_VD.contiguous(),
            out, visible_BKD.shape[0], kept, masked, position_temporal_SD.shape[0] * joints, joints,
            width, COMPUTE=TL_DTYPES[compute_dtype(out.dtype)], BR=tile, BD=columns,
        )  # fmt: skip
    return out


def _forward(
    visible_BKD: Tensor, mask_token_D: Tensor, ids_keep_BK: Tensor, ids_mask_BQ: Tensor,
    position_temporal_SD: Tensor, position_spatial_VD: Tensor,
) -> Tensor:  # fmt: skip
    ids = ids_keep_BK, ids_mask_BQ
    tables = position_temporal_SD, position_spatial_VD
    out = _forward_fake(visible_BKD, mask_token_D, *ids, *tables)
    return write_packed(out, visible_BKD, mask_token_D, *ids, *tables)


def _forward_fake(*inputs: Any) -> Tensor:
    visible_BKD, mask_token_D, _, ids_mask_BQ, *tables = inputs
    _, kept, width = visible_BKD.shape
    rows, masked = ids_mask_BQ.shape
    dtype = promoted([visible_BKD, mask_token_D, *tables])
    out: Tensor = visible_BKD.new_empty(rows, kept + masked, width, dtype=dtype)
    return out


def _sums(
    grad_BRD: Tensor, ids_keep_BK: Tensor, ids_mask_BQ: Tensor, segments: int, joints: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return sums of `grad` over rows: by segment, by joint, and where hidden."""
    rows, _, width = grad_BRD.shape
    dtype = compute_dtype(grad_BRD.dtype)
    if grad_BRD.numel() == 0:
        shapes = (segments, width), (joints, width), (width,)
        temporal, spatial, hidden = (grad_BRD.new_zeros(s, dtype=dtype) for s in shapes)
        return temporal, spatial, hidden
    # Enough programs to fill a large GPU; a function of the shapes alone, so sums repeat bitwise.
    chunk = cdiv(rows, min(rows, 256))
    parts = cdiv(rows, chunk)
    temporal = grad_BRD.new_empty((parts, segments, width), dtype=dtype)
    spatial = grad_BRD.new_empty((parts, joints, width), dtype=dtype)
    hidden = grad_BRD.new_empty((parts, width), dtype=dtype)
    # The largest of those tried that compile without spills for sm_80, sm_90 and sm_100, as the JIT
    # specialises them.
    tile, inner = 32, 32 if grad_BRD.element_size() == 2 else 16
    columns = min(row_tiles(width)[1], 64)
    grid = (parts, cdiv(max(segments, joints, 1), tile), cdiv(width, columns))
    _pack_backward_kernel[grid](
        grad_BRD.contiguous(), ids_keep_BK.contiguous(), ids_mask_BQ.contiguous(),
        temporal, spatial, hidden,
        ids_keep_BK.shape[0], rows, ids_keep_BK.shape[1], ids_mask_BQ.shape[1],
        segments, joints, width, chunk,
        COMPUTE=TL_DTYPES[dtype], UPCAST=INTERPRETED, BT=tile, BR=inner, BD=columns, num_warps=8,
    )  # fmt: skip
    return temporal.sum(0), spatial.sum(0), hidden.sum(0)


def _sums_fake(*inputs: Any) -> tuple[Tensor, ...]:
    grad_BRD, _, _, segments, joints = inputs
    width, dtype = grad_BRD.shape[2], compute_dtype(grad_BRD.dtype)
    shapes = (segments, width), (joints, width), (width,)
    return tuple(grad_BRD.new_empty(shape, dtype=dtype) for shape in shapes)


position_sums = Op("pack_tokens_backward", _sums, _sums_fake)


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    visible, mask_token, ids_keep, ids_mask, temporal, spatial = inputs
    ctx.save_for_backward(ids_keep, ids_mask)
    ctx.sizes = temporal.shape[0], spatial.shape[0]
    ctx.dtypes = visible.dtype, mask_token.dtype, temporal.dtype, spatial.dtype


def _backward(ctx: Any, grad_BRD: Tensor) -> tuple[Tensor | None, ...]:
    ids_keep, ids_mask = ctx.saved_tensors
    needs_visible, needs_mask, _, _, needs_temporal, needs_spatial = ctx.needs_input_grad
    visible_dtype, mask_dtype, temporal_dtype, spatial_dtype = ctx.dtypes
    visible = None
    if needs_visible:
        batch, kept = ids_keep.shape
        visible = grad_BRD[:, :kept]
        if grad_BRD.shape[0] != batch:
            visible = visible.unflatten(0, (-1, batch)).sum(dim=0)
        visible = visible.to(visible_dtype)
    if not (needs_mask or needs_temporal or needs_spatial):
        return visible, *[None] * 5
    temporal, spatial, hidden = position_sums(grad_BRD, ids_keep, ids_mask, *ctx.sizes)
    mask = hidden.to(mask_dtype) if needs_mask else None
    temporal = temporal.to(temporal_dtype) if needs_temporal else None
    spatial = spatial.to(spatial_dtype) if needs_spatial else None
    return visible, mask, None, None, temporal, spatial


_op = Op("pack_tokens", _forward, _forward_fake, setup=_setup, backward=_backward)


def pack_tokens(
    visible_BKD: Tensor,
    mask_token_D: Tensor,
    ids_keep_BK: Tensor,
    ids_mask_BQ: Tensor,
    position_temporal_SD: Tensor,
    position_spatial_VD: Tensor | None = None,
    *,
    repeat: int = 1,
    impl: str = "auto",
) -> Tensor:
    """Build the predictor's packed tokens [visible + pos[ids_keep] | mask_token + pos[ids_mask]].

    Self-attention does not depend on the order of tokens, so the packed sequence gives what
    scatter, restore and gather would give, and the predictions are the slice [:, K:].
    pos[s V + v] = temporal[s] + spatial[v]; the sum is formed in float32 (float64 for float64)
    and rounded once.

    Args:
        visible_BKD: Visible tokens; K may be 0.
        mask_token_D: The token that stands for what is hidden.
        ids_keep_BK: int32 or int64 token ids of the visible tokens.
        ids_mask_BQ: int32 or int64 token ids to predict; Q may be 0.
        position_temporal_SD: One row per segment; without the second table one row per token.
        position_spatial_VD: One row per joint.
        repeat: P, how many targets are predicted from each context: `ids_mask` is (P B, Q), row
            p B + b the p-th target of sequence b, as I-JEPA concatenates its four.
        impl: "auto", "triton", "cpu" or "torch".

    Returns:
        (P B, K + Q, D) in the dtype to which torch promotes those of the four float inputs, as its
        own addition and `cat` do; differentiable in all four.

    Raises:
        TypeError: A dtype is not usable.
        ValueError: A shape, device, id or `impl` is not usable.
    """
    ids = {"ids_keep": ids_keep_BK, "ids_mask": ids_mask_BQ}
    tables = both_tables(position_temporal_SD, position_spatial_VD)
    if repeat < 1:
        raise bad_value("repeat", repeat, "at least one target per sequence")
    check_tokens(visible_BKD, mask_token_D, ids, *tables, repeat=repeat)
    args = (visible_BKD, mask_token_D, ids_keep_BK, ids_mask_BQ, *tables)
    if choose(impl, visible_BKD.device) == "torch":
        return pack_tokens_ref(*args)
    out: Tensor = _op(*args)
    return out
