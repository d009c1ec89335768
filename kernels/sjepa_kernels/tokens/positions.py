# SPDX-License-Identifier: Apache-2.0
"""Each token's position added to it, and gradients of the tables without a sort or an atomic.

Shapes: B sequences, S segments, V joints, K kept tokens, D width.
"""

from typing import Any

from torch import Tensor
from torch.nn.functional import embedding

from sjepa_kernels._dispatch import choose
from sjepa_kernels._library import Op
from sjepa_kernels.tokens.pack import position_sums, write_packed
from sjepa_kernels.tokens.shared import both_tables, check_tokens, promoted


def add_positions_ref(*args: Tensor) -> Tensor:
    """Plain PyTorch form of `add_positions`, of the same arguments in their order."""
    visible_BKD, ids_keep_BK, temporal_SD, spatial_VD = args
    joints = spatial_VD.shape[0]
    # Not `table[ids]`, whose gradient differs from run to run on several CPU threads.
    position = embedding(ids_keep_BK // joints, temporal_SD)
    position = position + embedding(ids_keep_BK % joints, spatial_VD)
    return visible_BKD + position


def _forward(
    visible_BKD: Tensor,
    ids_keep_BK: Tensor,
    position_temporal_SD: Tensor,
    position_spatial_VD: Tensor,
) -> Tensor:
    """Packed tokens without masked ones; what stands for their token is not used."""
    tables = position_temporal_SD, position_spatial_VD
    out = _forward_fake(visible_BKD, ids_keep_BK, *tables)
    return write_packed(out, visible_BKD, visible_BKD, ids_keep_BK, ids_keep_BK[:, :0], *tables)


def _forward_fake(*inputs: Any) -> Tensor:
    visible_BKD, _, *tables = inputs
    dtype = promoted([visible_BKD, *tables])
    out: Tensor = visible_BKD.new_empty(visible_BKD.shape, dtype=dtype)
    return out


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    visible, ids_keep, temporal, spatial = inputs
    ctx.save_for_backward(ids_keep)
    ctx.sizes = temporal.shape[0], spatial.shape[0]
    ctx.dtypes = visible.dtype, temporal.dtype, spatial.dtype


def _backward(ctx: Any, grad_BKD: Tensor) -> tuple[Tensor | None, ...]:
    (ids_keep,) = ctx.saved_tensors
    needs_visible, _, needs_temporal, needs_spatial = ctx.needs_input_grad
    visible_dtype, temporal_dtype, spatial_dtype = ctx.dtypes
    visible = grad_BKD.to(visible_dtype) if needs_visible else None
    if not (needs_temporal or needs_spatial):
        return visible, None, None, None
    temporal, spatial, _ = position_sums(grad_BKD, ids_keep, ids_keep[:, :0], *ctx.sizes)
    temporal = temporal.to(temporal_dtype) if needs_temporal else None
    spatial = spatial.to(spatial_dtype) if needs_spatial else None
    return visible, None, temporal, spatial


_op = Op("add_positions", _forward, _forward_fake, setup=_setup, backward=_backward)


def add_positions(
    visible_BKD: Tensor,
    ids_keep_BK: Tensor,
    position_temporal_SD: Tensor,
    position_spatial_VD: Tensor | None = None,
    *,
    impl: str = "auto",
) -> Tensor:
    """Return visible + temporal[ids_keep // V] + spatial[ids_keep % V], tokens with positions.

    The gradients of the tables are sums over tokens in a fixed order, which repeat bitwise.

    Args:
        visible_BKD: Embedded tokens; K may be 0.
        ids_keep_BK: int32 or int64 token ids, segment * V + joint; they may repeat.
        position_temporal_SD: One row per segment; without the second table one row per token.
        position_spatial_VD: One row per joint.
        impl: "auto", "triton", "cpu" or "torch".

    Returns:
        (B, K, D), in the dtype to which torch promotes those of the three; summed in float32
        (float64 for float64) and differentiable in all three.

    Raises:
        TypeError: A dtype is not usable.
        ValueError: A shape, device, id or `impl` is not usable.
    """
    tables = both_tables(position_temporal_SD, position_spatial_VD)
    check_tokens(visible_BKD, None, {"ids_keep": ids_keep_BK}, *tables)
    args = visible_BKD, ids_keep_BK, *tables
    if choose(impl, visible_BKD.device) == "torch":
        return add_positions_ref(*args)
    out: Tensor = _op(*args)
    return out
