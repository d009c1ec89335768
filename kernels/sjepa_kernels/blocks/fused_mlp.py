# SPDX-License-Identifier: Apache-2.0
"""The MLP half of a pre-norm block, x + fc2(gelu(fc1(LN x))), without its hidden layer in memory.

Shapes: R rows (any leading axes), D width, H hidden width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear

from sjepa_kernels._checks import bad_value, check_float, check_positive, check_tensors
from sjepa_kernels._dispatch import choose
from sjepa_kernels._library import Op
from sjepa_kernels._triton import INTERPRETED, TL_DTYPES, cdiv, compute_dtype, row_block, tl, triton
from sjepa_kernels.blocks.residual_norm import _gradients as norm_gradients

# Whole rows stay on the chip, as an operand and as an accumulator.
_WIDEST_ROW = 512
# Numbers of the hidden layer that the backward holds at a time, twice: 4,096 rows of 1,024.
_CHUNK_NUMBERS = 1 << 22
_BLOCK = 2048


def fused_mlp_ref(*args: Any) -> Tensor:
    """Plain PyTorch form of `fused_mlp`; the last argument is the dtype of the matrix products."""
    x, norm_weight_D, norm_bias_D, w1_HD, b1_H, w2_DH, b2_D, eps, dot = args
    dtype = compute_dtype(x.dtype)
    affine = norm_weight_D.to(dtype), norm_bias_D.to(dtype)
    normal = layer_norm(x.to(dtype), affine[0].shape, *affine, eps).to(dot)
    hidden = gelu(linear(normal, w1_HD.to(dot), b1_H.to(dot)))
    out: Tensor = x + linear(hidden, w2_DH.to(dot), b2_D.to(dot)).to(x.dtype)
    return out


@triton.jit
def _forward_kernel(
    x, norm_weight, norm_bias, w1, b1, w2, b2, out, mean, rstd, R, D, H,
    COMPUTE: tl.constexpr, DOT: tl.constexpr, EPS: tl.constexpr,
    BM: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """A tile of whole rows; both weights stream past it, a tile of hidden units at a time."""
    r = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    d = tl.arange(0, BD)
    in_d = d < D
    inside = (r < R)[:, None] & in_d[None, :]
    place = r[:, None] * D + d[None, :]
    row = tl.load(x + place, mask=inside, other=0.0).to(COMPUTE)
    mu = tl.sum(row, axis=1) / D
    row = tl.where(in_d[None, :], row - mu[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(row * row, axis=1) / D + EPS)
    tl.store(mean + r, mu, mask=r < R)
    tl.store(rstd + r, scale, mask=r < R)
    row *= scale[:, None] * tl.load(norm_weight + d, mask=in_d, other=0.0).to(COMPUTE)[None, :]
    row += tl.load(norm_bias + d, mask=in_d, other=0.0).to(COMPUTE)[None, :]
    normal = row.to(DOT)
    total = tl.zeros((BM, BD), COMPUTE)
    for start in range(0, H, BH):
        h = start + tl.arange(0, BH)
        in_w = (h < H)[:, None] & in_d[None, :]
        w1_tile = tl.load(w1 + h[:, None] * D + d[None, :], mask=in_w, other=0.0).to(DOT)
        z = tl.dot(normal, tl.trans(w1_tile), input_precision="ieee", out_dtype=COMPUTE)
        z += tl.load(b1 + h, mask=h < H, other=0.0).to(COMPUTE)[None, :]
        z *= 0.5 + 0.5 * tl.erf(z * 0.7071067811865476)
        w2_tile = tl.load(w2 + d[None, :] * H + h[:, None], mask=in_w, other=0.0).to(DOT)
        total = tl.dot(z.to(DOT), w2_tile, total, input_precision="ieee", out_dtype=COMPUTE)
    # The rows are read again: kept through the loop they would cost registers.
    total += tl.load(x + place, mask=inside, other=0.0).to(COMPUTE)
    total += tl.load(b2 + d, mask=in_d, other=0.0).to(COMPUTE)[None, :]
    tl.store(out + place, total, mask=inside)


@triton.jit
def _activation_kernel(z, grad, count, COMPUTE: tl.constexpr, BLOCK: tl.constexpr):
    """In place: z becomes gelu(z), and the gradient of gelu(z) becomes that of z."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    x = tl.load(z + i, mask=inside, other=0.0).to(COMPUTE)
    g = tl.load(grad + i, mask=inside, other=0.0).to(COMPUTE)
    cdf = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
    slope = cdf + x * tl.exp(-0.5 * x * x) * 0.3989422804014327
    tl.store(z + i, x * cdf, mask=inside)
    tl.store(grad + i, g * slope, mask=inside)


def _tiles(columns: int, dot: torch.dtype) -> dict[str, int]:
    """Return rows and hidden units per tile: the largest tried that compile without spills."""
    if dot == torch.float64:
        return {"BM": 16, "BH": 16, "num_warps": 8, "num_stages": 1}
    wide = columns * dot.itemsize
    rows = (64 if wide <= 512 else 32) // (dot.itemsize // 2)
    return {"BM": rows, "BH": 32 if wide <= 1024 else 16, "num_warps": 8, "num_stages": 2}


def _forward(
    x: Tensor, norm_weight_D: Tensor, norm_bias_D: Tensor,
    w1_HD: Tensor, b1_H: Tensor, w2_DH: Tensor, b2_D: Tensor, eps: float, dot: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the output, and each row's mean and 1 / deviation."""
    out, mean, rstd = _forward_fake(x)
    hidden, width = w1_HD.shape
    if out.numel():
        columns = row_block(width)
        compute = mean.dtype
        tiles = _tiles(columns, dot)
        _forward_kernel[(cdiv(mean.numel(), tiles["BM"]),)](
            x.contiguous(), norm_weight_D.contiguous(), norm_bias_D.contiguous(),
            w1_HD.to(dot).contiguous(), b1_H.contiguous(), w2_DH.to(dot).contiguous(),
            b2_D.contiguous(), out, mean, rstd, mean.numel(), width, hidden, EPS=eps,
            COMPUTE=TL_DTYPES[compute], DOT=TL_DTYPES[compute if INTERPRETED else dot],
            BD=columns, **tiles,
        )  # fmt: skip
    return out, mean, rstd


def _forward_fake(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    x = inputs[0]
    mean, rstd = (x.new_empty(x.shape[:-1], dtype=compute_dtype(x.dtype)) for _ in range(2))
    return x.new_empty(x.shape), mean, rstd


def _gradients(
    grad_out: Tensor, x: Tensor, mean: Tensor, rstd: Tensor,
    norm_weight_D: Tensor, norm_bias_D: Tensor, w1_HD: Tensor, b1_H: Tensor, w2_DH: Tensor,
    eps: float, dot: torch.dtype, needs_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x, of the norm's weight and bias, (2, D), and of w1, b1 and w2.

    The last three stay zero if they are not needed.
    """
    width = x.shape[-1]
    rows_x, rows_grad = x.reshape(-1, width), grad_out.reshape(-1, width)
    norm = norm_weight_D.to(mean.dtype), norm_bias_D.to(mean.dtype), eps
    weights = w1_HD.to(dot), b1_H.to(dot), w2_DH.to(dot)
    with torch.autocast("cuda" if x.is_cuda else "cpu", enabled=False):
        grad_normal, *grads = _chunks(rows_grad, rows_x, norm, weights, mean.dtype, needs_weights)
    grad_x, _, sums = norm_gradients(
        grad_normal.view(x.shape), grad_out, x, mean, rstd, norm_weight_D, True, None, 2
    )
    return grad_x, sums, grads[0], grads[1], grads[2]


def _chunks(
    grad_RD: Tensor,
    x_RD: Tensor,
    norm: tuple[Tensor, Tensor, float],
    weights: tuple[Tensor, Tensor, Tensor],
    compute: torch.dtype,
    needs_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the normalised rows, of w1, of b1 and of w2.

    The hidden layer is computed again, a chunk of rows at a time: all products are plain matrix
    products, and a chunk is small enough to stay in a large GPU's cache.
    """
    weight, bias, eps = norm
    w1, b1, w2 = weights
    dot = w1.dtype
    grad_normal = x_RD.new_empty(x_RD.shape, dtype=dot)
    grads = [torch.zeros_like(p, dtype=compute) for p in weights]
    rows = max(_CHUNK_NUMBERS // max(w1.shape[0], 1), 1)
    for first in range(0, x_RD.shape[0], rows):
        part = slice(first, first + rows)
        normal = layer_norm(x_RD[part].to(compute), w1.shape[1:], weight, bias, eps).to(dot)
        grad = grad_RD[part].to(dot)
        z, grad_z = linear(normal, w1, b1), grad @ w2
        if z.numel():
            _activation_kernel[(cdiv(z.numel(), _BLOCK),)](
                z, grad_z, z.numel(), COMPUTE=TL_DTYPES[compute], BLOCK=_BLOCK
            )
        torch.mm(grad_z, w1, out=grad_normal[part])
        if needs_weights:
            # A chunk's products are rounded to their dtype once, then summed in the wider one.
            grads[0] += grad_z.t() @ normal
            grads[1] += grad_z.sum(0, dtype=compute)
            grads[2] += grad.t() @ z
    return grad_normal, grads[0], grads[1], grads[2]


def _gradients_fake(*inputs: Any) -> tuple[Tensor, ...]:
    _, x, mean, _, norm_weight_D, _, *weights = inputs
    sums = mean.new_empty(2, *norm_weight_D.shape)
    return x.new_empty(x.shape), sums, *(mean.new_empty(p.shape) for p in weights[:3])


_gradients_op = Op("fused_mlp_backward", _gradients, _gradients_fake)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, *parameters, ctx.eps, ctx.dot = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, mean, rstd, *parameters[:5])
    ctx.dtypes = [p.dtype for p in (x, *parameters)]


def _backward(ctx: Any, grad_out: Tensor, *_: Tensor) -> tuple[Any, ...]:
    needs = ctx.needs_input_grad
    grad_x, norms, *weights = _gradients_op(
        grad_out, *ctx.saved_tensors, ctx.eps, ctx.dot, any(needs[3:6])
    )
    grad_b2 = grad_out.reshape(-1, grad_out.shape[-1]).sum(0, dtype=norms.dtype)
    found = grad_x, *norms.unbind(), *weights, grad_b2
    paired = zip(found, ctx.dtypes, needs[:7], strict=True)
    return *(g.to(dtype) if need else None for g, dtype, need in paired), None, None


_op = Op("fused_mlp", _forward, _forward_fake, setup=_setup, backward=_backward)


def fused_mlp(
    x: Tensor,
    norm_weight_D: Tensor,
    norm_bias_D: Tensor,
    w1_HD: Tensor,
    b1_H: Tensor,
    w2_DH: Tensor,
    b2_D: Tensor,
    *,
    eps: float = 1e-5,
    impl: str = "auto",
) -> Tensor:
    """Return x + W2 gelu(W1 LN(x) + b1) + b2, the MLP half of a pre-norm block (method 3.5).

    The forward holds the hidden layer, H wide, only in tiles on the chip, and keeps x and two
    numbers per row; the backward computes it again, a bounded chunk of rows at a time. gelu is the
    exact one, by the error function.
    Products take the dtype of `x`, or autocast's where it is on, and sum in float32 (float64 for
    float64); the norm and the activation are computed in that dtype too. In float32 the forward's
    products are exact ones, never TF32, and therefore slow: the op is meant for half precision.

    Args:
        x: The residual stream, (..., D).
        norm_weight_D: Scale of the LayerNorm.
        norm_bias_D: Shift of the LayerNorm.
        w1_HD: Weight of the first linear layer.
        b1_H: Its bias.
        w2_DH: Weight of the second linear layer.
        b2_D: Its bias.
        eps: Added to the variance; above zero.
        impl: "auto", "triton", "cpu" or "torch".

    Returns:
        The shape and dtype of `x`; differentiable in all seven inputs.

    Raises:
        TypeError: A dtype is not usable.
        ValueError: A shape, device, eps or `impl` is not usable, or the width exceeds 512.
    """
    if x.ndim == 0 or x.shape[-1] == 0:
        raise bad_value("x", tuple(x.shape), "expected (..., D) with D at least 1")
    if w1_HD.ndim != 2:
        raise bad_value("w1", tuple(w1_HD.shape), "expected (H, D)")
    width, hidden = x.shape[-1], w1_HD.shape[0]
    parameters = {
        "norm_weight": (norm_weight_D, (width,), "(D,)"),
        "norm_bias": (norm_bias_D, (width,), "(D,)"),
        "w1": (w1_HD, (hidden, width), "(H, D)"),
        "b1": (b1_H, (hidden,), "(H,)"),
        "w2": (w2_DH, (width, hidden), "(D, H)"),
        "b2": (b2_D, (width,), "(D,)"),
    }
    check_float("x", x)
    check_tensors(x.device, parameters)
    check_positive("eps", eps)
    args = x, norm_weight_D, norm_bias_D, w1_HD, b1_H, w2_DH, b2_D, eps, product_dtype(x)
    if choose(impl, x.device) == "torch":
        return fused_mlp_ref(*args)
    if width > _WIDEST_ROW:
        raise bad_value("x", f"width {width}", f'up to {_WIDEST_ROW}, or impl="torch"')
    out: Tensor = _op(*args)[0]
    return out


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype a linear layer would multiply in: autocast's, except for float64."""
    device = x.device.type
    if x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype
