# SPDX-License-Identifier: Apache-2.0
"""Residual addition and the LayerNorm that follows it, in one pass each way.

Shapes: R rows (any leading axes), D width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import layer_norm

from sjepa_kernels._checks import (
    FLOATS,
    bad_type,
    bad_value,
    check_float,
    check_positive,
    check_tensors,
)
from sjepa_kernels._dispatch import choose
from sjepa_kernels._library import Op, is_direct
from sjepa_kernels._triton import TL_DTYPES, cdiv, compute_dtype, row_tile, tl, triton

# Whole rows stay in registers.
_WIDEST_ROW = 4096
# Enough programs to fill a large GPU; a constant, so that sums repeat bitwise.
_PROGRAMS = 1056


def residual_layer_norm_ref(*args: Any) -> tuple[Tensor, Tensor]:
    """Plain PyTorch form of `residual_layer_norm`; the last arguments are dtype and eps."""
    x, residual, weight_D, bias_D, added_bias_D, dtype, eps = args
    working = _working_dtype(x, residual)
    total = x = _as_added(x, added_bias_D)
    if residual is not None:
        total = (x.to(working) + residual.to(working)).to(residual.dtype)
    affine = weight_D.to(working), bias_D.to(working)
    return layer_norm(total.to(working), weight_D.shape, *affine, eps).to(dtype), total


def _as_added(x: Tensor, bias_D: Tensor | None) -> Tensor:
    """Return x, of which a bias in it gets the gradient."""
    return x if bias_D is None else x + (bias_D - bias_D.detach()).to(x.dtype)


@triton.jit
def _norm_forward_kernel(
    x, residual, weight, bias, y, total, mean, rstd, R, P, D,
    ADDS: tl.constexpr, REPEATS: tl.constexpr, COMPUTE: tl.constexpr, EPS: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Row r of x meets row r mod P of the residual, if there is one."""
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    r = row.to(tl.int64)
    d = tl.arange(0, BD)
    in_d = (d < D)[None, :]
    inside = (r < R)[:, None] & in_d
    place = r[:, None] * D + d[None, :]
    h = tl.load(x + place, mask=inside, other=0.0).to(COMPUTE)
    if ADDS:
        other = place
        if REPEATS:
            other = (row % P).to(tl.int64)[:, None] * D + d[None, :]
        h += tl.load(residual + other, mask=inside, other=0.0).to(COMPUTE)
        # Rounded before the norm, as the backward will read it.
        rounded = h.to(total.dtype.element_ty)
        tl.store(total + place, rounded, mask=inside)
        h = rounded.to(COMPUTE)
    mu = tl.sum(h, axis=1) / D
    h = tl.where(in_d, h - mu[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(h * h, axis=1) / D + EPS)
    tl.store(mean + r, mu, mask=r < R)
    tl.store(rstd + r, scale, mask=r < R)
    w = tl.load(weight + d, mask=d < D, other=0.0).to(COMPUTE)
    b = tl.load(bias + d, mask=d < D, other=0.0).to(COMPUTE)
    tl.store(y + place, h * scale[:, None] * w[None, :] + b[None, :], mask=inside)


@triton.jit
def _norm_backward_kernel(
    grad_y, grad_total, total, mean, rstd, weight, grad_stream, grad_x, parts, R, D,
    HAS_TOTAL: tl.constexpr, STREAM: tl.constexpr, BRANCH: tl.constexpr, SUMS: tl.constexpr,
    COMPUTE: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One gradient in up to two dtypes; its sums over rows are of weight, bias and added bias."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    d = tl.arange(0, BD)
    in_d = (d < D)[None, :]
    w = tl.load(weight + d, mask=d < D, other=0.0).to(COMPUTE)[None, :]
    weight_sum = tl.zeros((BR, BD), COMPUTE)
    bias_sum = tl.zeros((BR, BD), COMPUTE)
    added_sum = tl.zeros((BR, BD), COMPUTE)
    for tile in range(program, tl.cdiv(R, BR), programs):
        r = (tile * BR + tl.arange(0, BR)).to(tl.int64)
        inside = (r < R)[:, None] & in_d
        place = r[:, None] * D + d[None, :]
        scale = tl.load(rstd + r, mask=r < R, other=0.0)[:, None]
        mu = tl.load(mean + r, mask=r < R, other=0.0)[:, None]
        h = tl.load(total + place, mask=inside, other=0.0).to(COMPUTE)
        # Rows beyond R have a zero scale, columns beyond D a zero gradient and weight.
        normal = (h - mu) * scale
        dy = tl.load(grad_y + place, mask=inside, other=0.0).to(COMPUTE)
        if SUMS > 0:
            weight_sum += dy * normal
            bias_sum += dy
        dy = dy * w
        along = tl.sum(dy * normal, axis=1)[:, None] / D
        dh = (dy - tl.sum(dy, axis=1)[:, None] / D - normal * along) * scale
        if HAS_TOTAL:
            dh += tl.load(grad_total + place, mask=inside, other=0.0).to(COMPUTE)
        if STREAM:
            tl.store(grad_stream + place, dh, mask=inside)
        if BRANCH:
            tl.store(grad_x + place, dh, mask=inside)
        if SUMS > 2:
            # Columns beyond D are not stored.
            added_sum += dh
    part = parts + program.to(tl.int64) * D + d
    if SUMS > 0:
        tl.store(part, tl.sum(weight_sum, axis=0), mask=d < D)
        tl.store(part + programs * D, tl.sum(bias_sum, axis=0), mask=d < D)
    if SUMS > 2:
        tl.store(part + 2 * programs * D, tl.sum(added_sum, axis=0), mask=d < D)


def _working_dtype(x: Tensor, residual: Tensor | None) -> torch.dtype:
    """Return the dtype in which the op computes."""
    return compute_dtype(
        x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    )


def _forward(
    x: Tensor, residual: Tensor | None, weight_D: Tensor, bias_D: Tensor,
    added_bias_D: Tensor | None, dtype: torch.dtype, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return y, the sum (empty where it is x), and each row's mean and 1 / deviation."""
    y, total, mean, rstd = _forward_fake(x, residual, weight_D, bias_D, added_bias_D, dtype)
    width = weight_D.shape[0]
    if y.numel():
        rows, columns, warps = row_tile(width, 1024)
        other = x if residual is None else residual
        _norm_forward_kernel[(cdiv(mean.numel(), rows),)](
            x.contiguous(), other.contiguous(), weight_D.contiguous(), bias_D.contiguous(),
            y, total, mean, rstd, mean.numel(), other.numel() // width, width,
            ADDS=residual is not None, REPEATS=other.numel() < x.numel(),
            COMPUTE=TL_DTYPES[mean.dtype], EPS=eps, BR=rows, BD=columns, num_warps=warps,
        )  # fmt: skip
    return y, total, mean, rstd


def _forward_fake(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, residual, _, _, _, dtype, *_ = inputs
    mean, rstd = (x.new_empty(x.shape[:-1], dtype=_working_dtype(x, residual)) for _ in range(2))
    total = x.new_empty(0) if residual is None else residual.new_empty(x.shape)
    return x.new_empty(x.shape, dtype=dtype), total, mean, rstd


def _gradients(
    grad_y: Tensor, grad_total: Tensor | None, total: Tensor, mean: Tensor, rstd: Tensor,
    weight_D: Tensor, stream: bool, branch: torch.dtype | None, sums: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the sum's gradient in its dtype and in the branch's, and sums over rows.

    What is not asked for is empty. Two sums are the gradients of weight and bias, the third is
    that of the added bias.
    """
    width = weight_D.shape[0]
    rows, columns, warps = row_tile(width, 2048)
    programs = min(cdiv(mean.numel(), rows), _PROGRAMS)
    grads = [total.new_empty(total.shape if stream else 0)]
    grads += [total.new_empty(total.shape if branch else 0, dtype=branch)]
    parts = total.new_empty((sums, programs, width), dtype=mean.dtype)
    if total.numel():
        other = grad_y if grad_total is None else grad_total
        _norm_backward_kernel[(programs,)](
            grad_y.contiguous(), other.contiguous(), total.contiguous(), mean, rstd,
            weight_D.contiguous(), *grads, parts, mean.numel(), width,
            HAS_TOTAL=grad_total is not None, STREAM=stream, BRANCH=branch is not None, SUMS=sums,
            COMPUTE=TL_DTYPES[mean.dtype], BR=rows, BD=columns, num_warps=warps,
        )  # fmt: skip
    return grads[0], grads[1], parts.sum(1)


def _gradients_fake(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    _, _, total, mean, _, weight_D, stream, branch, sums = inputs
    grad_stream = total.new_empty(total.shape if stream else 0)
    grad_x = total.new_empty(total.shape if branch else 0, dtype=branch)
    return grad_stream, grad_x, mean.new_empty(sums, weight_D.shape[0])


_gradients_op = Op("residual_layer_norm_backward", _gradients, _gradients_fake)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, residual, *_ = inputs
    _, total, mean, rstd = output
    alone = residual is None
    ctx.mark_non_differentiable(mean, rstd, *([total] if alone else []))
    _keep(ctx, inputs, x if alone else total, mean, rstd)


def _keep(ctx: Any, inputs: tuple[Any, ...], total: Tensor, mean: Tensor, rstd: Tensor) -> None:
    """Save what the backward reads."""
    x, _, weight, bias, added_bias, ctx.y_dtype, _ = inputs
    # An output that nobody uses has no gradient, rather than one of zeros.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(total, mean, rstd, weight)
    ctx.x_dtype = x.dtype
    ctx.sum_dtypes = [getattr(p, "dtype", None) for p in (weight, bias, added_bias)]


def _backward(
    ctx: Any, grad_y: Tensor | None, grad_total: Tensor | None, *_: Any
) -> tuple[Any, ...]:
    total, mean, rstd, weight = ctx.saved_tensors
    needs_x, needs_residual, *needs_sums = ctx.needs_input_grad[:5]
    if grad_y is None:
        grad_y = total.new_zeros(total.shape, dtype=ctx.y_dtype)
    same = total.dtype == ctx.x_dtype
    stream, branch = needs_residual or (needs_x and same), needs_x and not same
    sums = 3 if needs_sums[2] else 2 * any(needs_sums)
    grad, grad_x, found = _gradients_op(
        grad_y, grad_total, total, mean, rstd, weight, stream, ctx.x_dtype if branch else None, sums
    )
    grads = [(grad_x if branch else grad) if needs_x else None, grad if needs_residual else None]
    for k, (need, dtype) in enumerate(zip(needs_sums, ctx.sum_dtypes, strict=True)):
        grads.append(found[k].to(dtype) if need else None)
    return *grads, None, None


_op = Op("residual_layer_norm", _forward, _forward_fake, setup=_setup, backward=_backward)


class _WithoutResidual(torch.autograd.Function):
    """The eager form whose sum is x itself: an op may not return its input, a function may.

    The gradients of both outputs then meet in the kernel, and not in an addition of their own.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        y, _, mean, rstd = _forward(*inputs)
        _keep(ctx, inputs, inputs[0], mean, rstd)
        return y, inputs[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        return _backward(ctx, *grads)


def residual_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor,
    *,
    added_bias_D: Tensor | None = None,
    dtype: torch.dtype | None = None,
    eps: float = 1e-5,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Add a branch to the residual stream and normalise the sum for the next branch.

    sum = x + residual, y = LayerNorm(sum) weight + bias (the pre-norm blocks of method 3.5).
    Arithmetic is float32 (float64 for float64); the backward keeps the sum and two numbers per row.

    Args:
        x: Output of a branch, (..., D).
        residual: The stream, of the same shape, or without the first of three axes or more: one
            table for all sequences. Its dtype may differ from that of `x`. None: the sum is `x`.
        weight_D: Scale of the LayerNorm.
        bias_D: Shift of the LayerNorm.
        added_bias_D: A bias that is in `x` already, added by a linear layer that got it detached.
            It changes no value; its gradient, a sum over all rows, costs no pass of its own here.
        dtype: Of y; None for that of `x`.
        eps: Added to the variance; above zero.
        impl: "auto", "triton", "cpu" or "torch".

    Returns:
        y, and the sum in the dtype of `residual`; both differentiable in all five inputs.

    Raises:
        TypeError: A dtype is not usable.
        ValueError: A shape, device, eps or `impl` is not usable, or the width exceeds 4,096.
    """
    if x.ndim == 0 or x.shape[-1] == 0:
        raise bad_value("x", tuple(x.shape), "expected (..., D) with D at least 1")
    check_float("x", x)
    width = tuple(x.shape[-1:])
    others = {"weight": (weight_D, width, "(D,)"), "bias": (bias_D, width, "(D,)")}
    if residual is not None:
        repeats = x.ndim > 2 and residual.ndim == x.ndim - 1
        shape, letters = (x.shape[1:], "x.shape[1:]") if repeats else (x.shape, "x.shape")
        others["residual"] = residual, tuple(shape), letters
    if added_bias_D is not None:
        others["added_bias"] = added_bias_D, width, "(D,)"
    check_tensors(x.device, others)
    dtype = x.dtype if dtype is None else dtype
    if dtype not in FLOATS:
        raise bad_type("dtype", dtype, "choose a floating-point dtype of 16, 32 or 64 bits")
    check_positive("eps", eps)
    if choose(impl, x.device) == "torch":
        return residual_layer_norm_ref(x, residual, weight_D, bias_D, added_bias_D, dtype, eps)
    if x.shape[-1] > _WIDEST_ROW:
        raise bad_value("x", f"width {x.shape[-1]}", f'up to {_WIDEST_ROW}, or impl="torch"')
    if residual is not None and residual.requires_grad:
        # Only a table that learns nothing is read as it is.
        residual = residual.expand(x.shape)
    args = x, residual, weight_D, bias_D, added_bias_D, dtype, eps
    if residual is not None:
        y, total, _, _ = _op(*args)
    elif is_direct(args) and torch.is_grad_enabled():
        y, total = _WithoutResidual.apply(*args)
    else:
        total = _as_added(x, added_bias_D)
        y = _op(total, None, weight_D, bias_D, None, dtype, eps)[0]
    return y, total
