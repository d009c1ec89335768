"""Residual addition and the LayerNorm that follows it, in one pass each way.

Shapes: R rows (any leading axes), D width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from sjepa_kernels._checks import bad_value, check_float, check_positive, check_tensors
from sjepa_kernels._dispatch import choose
from sjepa_kernels._library import Op
from sjepa_kernels._triton import TL_DTYPES, cdiv, compute_dtype, row_tile, tl, triton

# Whole rows stay in registers.
_WIDEST_ROW = 4096
# Enough programs to fill a large GPU; a constant, so that sums repeat bitwise.
_PROGRAMS = 1056


def residual_layer_norm_ref(
    x: Tensor, residual: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch form of `residual_layer_norm`."""
    dtype = _working_dtype(x, residual)
    total = (x.to(dtype) + residual.to(dtype)).to(residual.dtype)
    affine = weight_D.to(dtype), bias_D.to(dtype)
    return layer_norm(total.to(dtype), weight_D.shape, *affine, eps).to(x.dtype), total


@triton.jit
def _forward_kernel(
    x, residual, weight, bias, y, total, mean, rstd, R, D,
    COMPUTE: tl.constexpr, EPS: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    r = (tl.program_id(0) * BR + tl.arange(0, BR)).to(tl.int64)
    d = tl.arange(0, BD)
    in_d = (d < D)[None, :]
    inside = (r < R)[:, None] & in_d
    place = r[:, None] * D + d[None, :]
    h = tl.load(x + place, mask=inside, other=0.0).to(COMPUTE)
    h += tl.load(residual + place, mask=inside, other=0.0).to(COMPUTE)
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
def _backward_kernel(
    grad_y, grad_total, total, mean, rstd, weight, grad, weight_part, bias_part, R, D,
    NEEDS_AFFINE: tl.constexpr, COMPUTE: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    d = tl.arange(0, BD)
    in_d = (d < D)[None, :]
    w = tl.load(weight + d, mask=d < D, other=0.0).to(COMPUTE)[None, :]
    weight_sum = tl.zeros((BR, BD), COMPUTE)
    bias_sum = tl.zeros((BR, BD), COMPUTE)
    for tile in range(program, tl.cdiv(R, BR), tl.num_programs(0)):
        r = (tile * BR + tl.arange(0, BR)).to(tl.int64)
        inside = (r < R)[:, None] & in_d
        place = r[:, None] * D + d[None, :]
        scale = tl.load(rstd + r, mask=r < R, other=0.0)[:, None]
        mu = tl.load(mean + r, mask=r < R, other=0.0)[:, None]
        h = tl.load(total + place, mask=inside, other=0.0).to(COMPUTE)
        # Rows beyond R have a zero scale, columns beyond D a zero gradient and weight.
        normal = (h - mu) * scale
        dy = tl.load(grad_y + place, mask=inside, other=0.0).to(COMPUTE)
        if NEEDS_AFFINE:
            weight_sum += dy * normal
            bias_sum += dy
        dy = dy * w
        along = tl.sum(dy * normal, axis=1)[:, None] / D
        dh = (dy - tl.sum(dy, axis=1)[:, None] / D - normal * along) * scale
        dh += tl.load(grad_total + place, mask=inside, other=0.0).to(COMPUTE)
        tl.store(grad + place, dh, mask=inside)
    if NEEDS_AFFINE:
        part = program.to(tl.int64) * D + d
        tl.store(weight_part + part, tl.sum(weight_sum, axis=0), mask=d < D)
        tl.store(bias_part + part, tl.sum(bias_sum, axis=0), mask=d < D)


def _working_dtype(x: Tensor, residual: Tensor) -> torch.dtype:
    """Return the dtype in which the op computes."""
    return compute_dtype(torch.promote_types(x.dtype, residual.dtype))


def _forward(
    x: Tensor, residual: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return y, the sum, and each row's mean and 1 / deviation."""
    y, total, mean, rstd = _forward_fake(x, residual)
    width = weight_D.shape[0]
    if y.numel():
        rows, columns, warps = row_tile(width, 1024)
        _forward_kernel[(cdiv(mean.numel(), rows),)](
            x.contiguous(), residual.contiguous(), weight_D.contiguous(), bias_D.contiguous(),
            y, total, mean, rstd, mean.numel(), width,
            COMPUTE=TL_DTYPES[mean.dtype], EPS=eps, BR=rows, BD=columns, num_warps=warps,
        )  # fmt: skip
    return y, total, mean, rstd


def _forward_fake(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, residual = inputs[:2]
    mean, rstd = (x.new_empty(x.shape[:-1], dtype=_working_dtype(x, residual)) for _ in range(2))
    return x.new_empty(x.shape), residual.new_empty(x.shape), mean, rstd


def _gradients(
    grad_y: Tensor, grad_total: Tensor, total: Tensor, mean: Tensor, rstd: Tensor,
    weight_D: Tensor, needs_affine: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of the sum, of the weight and of the bias (empty if not needed)."""
    width = weight_D.shape[0]
    rows, columns, warps = row_tile(width, 2048)
    programs = min(cdiv(mean.numel(), rows), _PROGRAMS)
    grad = total.new_empty(total.shape)
    parts = total.new_empty((2, programs, width if needs_affine else 0), dtype=mean.dtype)
    if grad.numel():
        _backward_kernel[(programs,)](
            grad_y.contiguous(), grad_total.contiguous(), total.contiguous(), mean, rstd,
            weight_D.contiguous(), grad, parts[0], parts[1], mean.numel(), width,
            NEEDS_AFFINE=needs_affine, COMPUTE=TL_DTYPES[mean.dtype], BR=rows, BD=columns,
            num_warps=warps,
        )  # fmt: skip
    return grad, parts[0].sum(0), parts[1].sum(0)


def _gradients_fake(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    _, _, total, mean, _, weight_D, needs_affine = inputs
    size = weight_D.shape[0] if needs_affine else 0
    weight, bias = (total.new_empty(size, dtype=mean.dtype) for _ in range(2))
    return total.new_empty(total.shape), weight, bias


_gradients_op = Op("residual_layer_norm_backward", _gradients, _gradients_fake)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, _, weight, bias, _ = inputs
    _, total, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(total, mean, rstd, weight)
    ctx.dtypes = x.dtype, bias.dtype


def _backward(ctx: Any, grad_y: Tensor, grad_total: Tensor, *_: Tensor) -> tuple[Any, ...]:
    total, mean, rstd, weight = ctx.saved_tensors
    needs_x, needs_residual, needs_weight, needs_bias, _ = ctx.needs_input_grad
    grad, grad_weight, grad_bias = _gradients_op(
        grad_y, grad_total, total, mean, rstd, weight, needs_weight or needs_bias
    )
    grad_x = grad.to(ctx.dtypes[0]) if needs_x else None
    grad_weight = grad_weight.to(weight.dtype) if needs_weight else None
    grad_bias = grad_bias.to(ctx.dtypes[1]) if needs_bias else None
    return grad_x, grad if needs_residual else None, grad_weight, grad_bias, None


_op = Op("residual_layer_norm", _forward, _forward_fake, setup=_setup, backward=_backward)


def residual_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight_D: Tensor,
    bias_D: Tensor,
    *,
    eps: float = 1e-5,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Add a branch to the residual stream and normalise the sum for the next branch.

    sum = x + residual, y = LayerNorm(sum) weight + bias (the pre-norm blocks of method 3.5).
    Arithmetic is float32 (float64 for float64); the backward keeps the sum and two numbers per row.

    Args:
        x: Output of a branch, (..., D).
        residual: The stream, the same shape; its dtype may differ from that of `x`.
        weight_D: Scale of the LayerNorm.
        bias_D: Shift of the LayerNorm.
        eps: Added to the variance; above zero.
        impl: "auto", "triton", "cpu" or "torch".

    Returns:
        y in the dtype of `x`, and the sum in the dtype of `residual`; both differentiable in all
        four inputs.

    Raises:
        TypeError: A dtype is not usable.
        ValueError: A shape, device, eps or `impl` is not usable, or the width exceeds 4,096.
    """
    if x.ndim == 0:
        raise bad_value("x", (), "expected (..., D)")
    check_float("x", x)
    width = (x.shape[-1],)
    others = {
        "residual": (residual, tuple(x.shape), "x.shape"),
        "weight": (weight_D, width, "(D,)"),
        "bias": (bias_D, width, "(D,)"),
    }
    check_tensors(x.device, others)
    check_positive("eps", eps)
    if choose(impl, x.device) == "torch":
        return residual_layer_norm_ref(x, residual, weight_D, bias_D, eps)
    if x.shape[-1] > _WIDEST_ROW:
        raise bad_value("x", f"width {x.shape[-1]}", f'up to {_WIDEST_ROW}, or impl="torch"')
    y, total, _, _ = _op(x, residual, weight_D, bias_D, eps)
    return y, total
