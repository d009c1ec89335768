# SPDX-License-Identifier: Apache-2.0
"""Launches the Triton attention of packed queries, keys and values, with its gradient.

Shapes: B sequences, N tokens, Q of them with a query, H heads, d head width, T tiles.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sjepa_kernels._checks import FLOATS
from sjepa_kernels._library import Op
from sjepa_kernels._triton import (
    HAVE_TRITON,
    INTERPRETED,
    TL_DTYPES,
    cdiv,
    compute_dtype,
    row_block,
)
from sjepa_kernels.attention.kernel import (
    _attention_forward_kernel,
    _attention_keys_kernel,
    _attention_queries_kernel,
    _attention_whole_kernel,
)

_WIDTHS = (16, 32)


class Tile(NamedTuple):
    """What one program of a kernel holds and how it runs."""

    rows: int
    columns: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """The tiles of the kernels; a sequence of up to `one` tokens is a single tile of its own.

    `rows` of the two kernels of the backward are equal: they share the rows of the partial sums.
    """

    one: int
    forward: Tile
    queries: Tile
    keys: Tile


# By bytes of a number. Half precision: the fastest of 200 tiles measured on an H100, Triton 3.6
# (`python -m benchmarks.tune_attention`, benchmarks/LOG.md). Tiles of four warps win, of which
# four or five programs fit on an SM and hide each other's waits. Exact float32 products run on the
# multiply-add units, whose operands fill the registers: the largest tiles without spills.
TILES = {
    2: Tiles(128, Tile(64, 64, 4, 3), Tile(64, 64, 4, 3), Tile(64, 32, 4, 3)),
    4: Tiles(64, Tile(32, 32, 8, 2), Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)),
    8: Tiles(16, Tile(16, 16, 4, 1), Tile(16, 16, 4, 1), Tile(16, 16, 4, 1)),
}


def takes(qkv_BN3Hd: Tensor) -> bool:
    """Whether the Triton kernels run here and take this packed tensor."""
    runs = HAVE_TRITON and (qkv_BN3Hd.device.type == "cuda" or INTERPRETED)
    fits = qkv_BN3Hd.dtype in FLOATS and qkv_BN3Hd.shape[-1] in _WIDTHS
    # Places inside a sequence are counted in 32 bits.
    return runs and fits and math.prod(qkv_BN3Hd.shape[1:]) < 2**31


def _one_tile(tokens: int, tiles: Tiles) -> Tile | None:
    """Return the tile that holds a whole sequence, or None where it is too long."""
    if tokens > tiles.one:
        return None
    block = row_block(tokens)
    return Tile(block, block, 8 if block > 32 else 4, 1)


def _options(qkv: Tensor, tile: Tile) -> dict[str, Any]:
    """Return what all kernels have in common, and how the tile runs."""
    width, dtype = qkv.shape[-1], qkv.dtype
    compute = compute_dtype(dtype)
    return {
        "num_warps": tile.warps,
        # For sm_100 loads ahead of their use spill a register of the narrow heads.
        "num_stages": tile.stages if width > 16 else 1,
        "WIDTH": width,
        "SCALE": math.log2(math.e) / math.sqrt(width),
        "COMPUTE": TL_DTYPES[compute],
        "DOT": TL_DTYPES[compute if INTERPRETED else dtype],
    }


def _forward(qkv: Tensor, added_bias: Tensor | None, first: int) -> tuple[Tensor, Tensor]:
    """Return the mixed values and log2 of the sums of weights, (B, H, P) of which Q count."""
    out, lse = _forward_fake(qkv, added_bias, first)
    batch, tokens, _, heads, _ = qkv.shape
    if out.numel():
        tiles = TILES[qkv.itemsize]
        one = _one_tile(tokens, tiles)
        tile = one or tiles.forward
        count = cdiv(tokens - first, tile.rows)
        _attention_forward_kernel[(batch * heads * count,)](
            qkv.contiguous(), out, lse, lse.shape[-1], tokens, first, heads, count,
            ONE_TILE=one is not None, BM=tile.rows, BN=tile.columns, **_options(qkv, tile),
        )  # fmt: skip
    return out, lse


def _forward_fake(qkv: Tensor, added_bias: Tensor | None, first: int) -> tuple[Tensor, Tensor]:
    batch, tokens, _, heads, width = qkv.shape
    out = qkv.new_empty(batch, tokens - first, heads, width)
    places = cdiv(tokens - first, 16) * 16
    return out, qkv.new_empty(batch, heads, places, dtype=compute_dtype(qkv.dtype))


def _gradients(
    grad_out: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, first: int, needs_sums: bool
) -> tuple[Tensor, Tensor]:
    """Return the packed gradient, and its column sums (3 H d,) or nothing."""
    grad, total = _gradients_fake(grad_out, qkv, out, lse, first, needs_sums)
    batch, tokens, _, heads, _ = qkv.shape
    if grad.numel() == 0:
        return grad, total.zero_()
    tiles = TILES[qkv.itemsize]
    one = _one_tile(tokens, tiles)
    # Programs of queries and of keys share the rows of the sums, a row for each of their tiles.
    count = 1 if one else cdiv(tokens, tiles.queries.rows)
    sums = total.new_empty((batch * count * needs_sums, *grad.shape[2:]))
    ends = grad, sums, tokens, first, heads
    qkv, grad_out = qkv.contiguous(), grad_out.contiguous()
    grid = (batch * heads * count,)
    if one:
        _attention_whole_kernel[grid](
            qkv, grad_out, lse, lse.shape[-1], *ends,
            HAS_SUMS=needs_sums, BN=one.rows, **_options(qkv, one),
        )  # fmt: skip
    else:
        delta = torch.empty_like(lse)
        tile = tiles.queries
        _attention_queries_kernel[grid](
            qkv, out, grad_out, lse, delta, lse.shape[-1], *ends, count,
            HAS_SUMS=needs_sums, BM=tile.rows, BN=tile.columns, **_options(qkv, tile),
        )  # fmt: skip
        tile = tiles.keys
        _attention_keys_kernel[grid](
            qkv, grad_out, lse, delta, lse.shape[-1], *ends, count,
            HAS_SUMS=needs_sums, BM=tile.columns, BN=tile.rows, **_options(qkv, tile),
        )  # fmt: skip
    return grad, sums.sum(0).flatten() if needs_sums else total


def _gradients_fake(*inputs: Any) -> tuple[Tensor, Tensor]:
    qkv, needs_sums = inputs[1], inputs[-1]
    # Not times a bool, which a traced size does not take.
    sums = math.prod(qkv.shape[2:]) if needs_sums else 0
    return qkv.new_empty(qkv.shape), qkv.new_empty(sums, dtype=compute_dtype(qkv.dtype))


_gradients_op = Op("self_attention_triton_backward", _gradients, _gradients_fake)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, bias, ctx.first = inputs
    ctx.mark_non_differentiable(output[1])
    # Else the sums would get a gradient of zeros.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(qkv, *output)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None
    needs_sums = ctx.needs_input_grad[1]
    found, sums = _gradients_op(grad, *ctx.saved_tensors, ctx.first, needs_sums)
    return found, sums.to(ctx.bias_dtype) if needs_sums else None, None


# Its arguments: qkv, the bias that is in it or None, and the first token with a query.
self_attention_triton = Op(
    "self_attention_triton", _forward, _forward_fake, setup=_setup, backward=_backward
)
