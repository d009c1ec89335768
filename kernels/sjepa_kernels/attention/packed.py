# SPDX-License-Identifier: Apache-2.0
"""Packed queries, keys and values as three views whose gradients come back in one packed tensor.

Autograd would stack the three gradients and copy the result; here one kernel does both, and adds
up the columns for the gradient of the bias in the same pass.
Shapes: B sequences, N tokens, Q of them with a query, H heads, d head width, C = H d, P parts.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sjepa_kernels._library import Op
from sjepa_kernels._triton import TL_DTYPES, cdiv, compute_dtype, row_tile, tl, triton

# Enough programs to fill a large GPU several times; sums are split by the shape alone.
_PROGRAMS = 1056


def unpack(qkv_BN3Hd: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return views: the queries from token `first` on (B, H, Q, d), all keys and all values."""
    q, k, v = qkv_BN3Hd.permute(2, 0, 3, 1, 4).unbind(0)
    return q[:, :, first:], k, v


@triton.jit
def _pack_part(
    source, stride_b, stride_h, stride_n, grad, total, r, c, inside, N, first, C,
    PART: tl.constexpr, WIDTH: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Copy a tile of one of the three; rows before `first` are zero. Return the sum so far."""
    b = r // N
    n = r % N - first
    row = b * stride_b + n * stride_n
    column = tl.cast(c // WIDTH, tl.int64) * stride_h + c % WIDTH
    known = inside & (n >= 0)[:, None]
    x = tl.load(source + row[:, None] + column[None, :], mask=known, other=0.0)
    tl.store(grad + (r * 3 + PART)[:, None] * C + c[None, :], x, mask=inside)
    return total + x.to(COMPUTE)


@triton.jit
def _pack_kernel(
    dq, dk, dv, grad, sums, R, N, first, C,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n,
    WIDTH: tl.constexpr, HAS_SUMS: tl.constexpr, COMPUTE: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    total_q = tl.zeros((BR, BC), COMPUTE)
    total_k = tl.zeros((BR, BC), COMPUTE)
    total_v = tl.zeros((BR, BC), COMPUTE)
    for tile in range(program, tl.cdiv(R, BR), tl.num_programs(0)):
        r = (tile * BR + tl.arange(0, BR)).to(tl.int64)
        inside = (r < R)[:, None] & (c < C)[None, :]
        total_q = _pack_part(
            dq, q_b, q_h, q_n, grad, total_q, r, c, inside, N, first, C, 0, WIDTH, COMPUTE
        )
        total_k = _pack_part(
            dk, k_b, k_h, k_n, grad, total_k, r, c, inside, N, 0, C, 1, WIDTH, COMPUTE
        )
        total_v = _pack_part(
            dv, v_b, v_h, v_n, grad, total_v, r, c, inside, N, 0, C, 2, WIDTH, COMPUTE
        )
    if HAS_SUMS:
        place = sums + program * 3 * C + c
        tl.store(place, tl.sum(total_q, axis=0), mask=c < C)
        tl.store(place + C, tl.sum(total_k, axis=0), mask=c < C)
        tl.store(place + 2 * C, tl.sum(total_v, axis=0), mask=c < C)


def _pack(
    dq: Tensor, dk: Tensor, dv: Tensor, first: int, needs_sums: bool
) -> tuple[Tensor, Tensor]:
    """Return the packed gradient (B, N, 3, H, d), and its column sums (3 H d,) or nothing."""
    grad, total = _pack_fake(dq, dk, dv, first, needs_sums)
    if grad.numel() == 0:
        return grad, total.zero_()
    batch, tokens, _, heads, width = grad.shape
    found = [x if x.stride(-1) == 1 else x.contiguous() for x in (dq, dk, dv)]
    rows, columns = batch * tokens, heads * width
    tile, block, warps = row_tile(min(columns, 256), 1024)
    programs = min(cdiv(rows, tile), _PROGRAMS)
    sums = total.new_empty((programs if needs_sums else 0, 3 * columns))
    strides = [s for x in found for s in x.stride()[:3]]
    _pack_kernel[(programs, cdiv(columns, block))](
        *found, grad, sums, rows, tokens, first, columns, *strides,
        WIDTH=width, HAS_SUMS=needs_sums, COMPUTE=TL_DTYPES[sums.dtype], BR=tile, BC=block,
        num_warps=warps,
    )  # fmt: skip
    return grad, sums.sum(0) if needs_sums else total


def _pack_fake(*inputs: Any) -> tuple[Tensor, Tensor]:
    _, dk, _, _, needs_sums = inputs
    batch, heads, tokens, width = dk.shape
    grad = dk.new_empty(batch, tokens, 3, heads, width)
    # Not times a bool, which a traced size does not take.
    sums = dk.new_empty(3 * heads * width if needs_sums else 0, dtype=compute_dtype(dk.dtype))
    return grad, sums


_pack_op = Op("self_attention_pack", _pack, _pack_fake)


class _Unpack(torch.autograd.Function):
    @staticmethod
    def forward(
        qkv_BN3Hd: Tensor, added_bias: Tensor | None, first: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        return unpack(qkv_BN3Hd, first)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, bias, ctx.first = inputs
        ctx.dtype = None if bias is None else bias.dtype

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needs_sums = ctx.needs_input_grad[1]
        grad, sums = _pack_op(*grads, ctx.first, needs_sums)
        return grad, sums.to(ctx.dtype) if needs_sums else None, None


class _AddedBias(torch.autograd.Function):
    @staticmethod
    def forward(qkv_BN3Hd: Tensor, added_bias: Tensor) -> Tensor:
        return qkv_BN3Hd.view_as(qkv_BN3Hd)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.dtype = inputs[1].dtype

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        if not ctx.needs_input_grad[1]:
            return grad, None
        rows = grad.reshape(-1, grad.shape[2:].numel())
        return grad, rows.sum(0, dtype=compute_dtype(grad.dtype)).to(ctx.dtype)


def unpack_one_gradient(
    qkv_BN3Hd: Tensor, added_bias: Tensor | None, first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`unpack`; one kernel makes the gradients of the packed tensor and of the bias in it."""
    q, k, v = _Unpack.apply(qkv_BN3Hd, added_bias, first)
    return q, k, v


def with_added_bias(qkv_BN3Hd: Tensor, added_bias: Tensor) -> Tensor:
    """Return the packed tensor; the column sums of its gradient are that of the bias in it."""
    same: Tensor = _AddedBias.apply(qkv_BN3Hd, added_bias)
    return same
