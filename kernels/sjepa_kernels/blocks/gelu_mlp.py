# SPDX-License-Identifier: Apache-2.0
"""Two linear layers with a GELU between, whose activation costs no pass over memory of its own.

Shapes: R rows (any leading axes), D width, H hidden width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

from sjepa_kernels._checks import bad_value, check_float, check_tensors
from sjepa_kernels._dispatch import choose
from sjepa_kernels._library import Op
from sjepa_kernels._triton import INTERPRETED, TL_DTYPES, cdiv, compute_dtype, row_block, tl, triton
from sjepa_kernels.blocks.activation import gelu_parts
from sjepa_kernels.blocks.fused_mlp import product_dtype

# Of rows that the kernels hold whole, in registers or in shared memory. For wider ones cuBLAS and a
# pass for the activation are better.
_WIDEST_ROW = 256
# The fastest of those measured on an H100 with Triton 3.6 for rows of 256 and 1024 hidden units.
_FORWARD = {"BM": 128, "BH": 64, "num_warps": 8, "num_stages": 3}
_BACKWARD = {"BM": 64, "BH": 32, "num_warps": 4, "num_stages": 1}
# Of the pass for the activation, where a kernel does not do it: enough programs to fill a large
# GPU; constants, so that sums repeat bitwise.
_SLOPE_TILE = {"BR": 16, "BH": 128}
_PROGRAMS = 1056


def gelu_mlp_ref(*args: Any) -> Tensor:
    """Plain PyTorch form of `gelu_mlp`; the last argument is the dtype of the matrix products."""
    *tensors, dot = args
    x, w1_HD, b1_H, w2_DH, b2_D = (t.to(dot) for t in tensors)
    return linear(gelu(linear(x, w1_HD, b1_H)), w2_DH, b2_D)


@triton.jit
def _gelu_product_kernel(
    hidden, w2, b2, y, R, D: tl.constexpr, H: tl.constexpr,
    COMPUTE: tl.constexpr, DOT: tl.constexpr, SHORT: tl.constexpr,
    BM: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The second product of a tile of whole rows, whose activation is made on the way to it."""
    # Within the tile offsets have 32 bits, which spares registers.
    first = tl.program_id(0).to(tl.int64) * BM
    r = tl.arange(0, BM)
    d = tl.arange(0, BD)
    in_r, in_d = (first + r < R)[:, None], d < D
    hidden += first * H
    total = tl.zeros((BM, BD), COMPUTE)
    for start in range(0, H, BH):
        h = start + tl.arange(0, BH)
        in_h = h < H
        z = tl.load(hidden + (r[:, None] * H + h[None, :]), mask=in_r & in_h[None, :], other=0.0)
        activated, _ = gelu_parts(z.to(COMPUTE), SHORT)
        at = w2 + (d[:, None] * H + h[None, :])
        tile = tl.load(at, mask=in_d[:, None] & in_h[None, :], other=0.0).to(DOT)
        # Rounded, as a layer of its own would have left it.
        activated = activated.to(hidden.dtype.element_ty).to(DOT)
        total = tl.dot(activated, tl.trans(tile), total, input_precision="ieee", out_dtype=COMPUTE)
    total += tl.load(b2 + d, mask=in_d, other=0.0).to(COMPUTE)[None, :]
    place = y + first * D + (r[:, None] * D + d[None, :])
    tl.store(place, total, mask=in_r & in_d[None, :])


@triton.jit
def _gelu_slope_product_kernel(
    grad_y, w2, hidden, grad_h, activation, parts, R, D: tl.constexpr, H: tl.constexpr,
    REMAKE: tl.constexpr, COMPUTE: tl.constexpr, DOT: tl.constexpr, SHORT: tl.constexpr,
    BM: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Of a tile of whole rows: the hidden layer's gradient, its sum over the rows, its activation.

    The weight streams past it, a tile of hidden units at a time.
    """
    first = tl.program_id(0).to(tl.int64) * BM
    r = tl.arange(0, BM)
    d = tl.arange(0, BD)
    in_r = (first + r < R)[:, None]
    at = grad_y + first * D + (r[:, None] * D + d[None, :])
    rows = tl.load(at, mask=in_r & (d < D)[None, :], other=0.0).to(DOT)
    hidden += first * H
    grad_h += first * H
    activation += first * H
    parts += tl.program_id(0).to(tl.int64) * H
    for start in range(0, H, BH):
        h = start + tl.arange(0, BH)
        inside = in_r & (h < H)[None, :]
        place = r[:, None] * H + h[None, :]
        in_w = (d < D)[:, None] & (h < H)[None, :]
        tile = tl.load(w2 + (d[:, None] * H + h[None, :]), mask=in_w, other=0.0).to(DOT)
        # Under way during the product.
        kept = tl.load(hidden + place, mask=inside, other=0.0)
        g = tl.dot(rows, tile, input_precision="ieee", out_dtype=COMPUTE)
        activated, slope = gelu_parts(kept.to(COMPUTE), SHORT)
        # Rounded: half the bytes to turn from the order of memory to that of the product. Rows
        # beyond R have no gradient.
        g *= slope.to(grad_h.dtype.element_ty).to(COMPUTE)
        tl.store(grad_h + place, g, mask=inside)
        if REMAKE:
            tl.store(activation + place, activated, mask=inside)
        tl.store(parts + h, tl.sum(g, axis=0), mask=h < H)


@triton.jit
def _gelu_slope_kernel(
    grad, hidden, activation, parts, R, H,
    REMAKE: tl.constexpr, COMPUTE: tl.constexpr, SHORT: tl.constexpr,
    BR: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """In place: the gradient of the activation becomes that of the hidden layer."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    h = tl.program_id(1) * BH + tl.arange(0, BH)
    total = tl.zeros((BR, BH), COMPUTE)
    for tile in range(program, tl.cdiv(R, BR), programs):
        r = (tile * BR + tl.arange(0, BR)).to(tl.int64)
        inside = (r < R)[:, None] & (h < H)[None, :]
        place = r[:, None] * H + h[None, :]
        z = tl.load(hidden + place, mask=inside, other=0.0).to(COMPUTE)
        g = tl.load(grad + place, mask=inside, other=0.0).to(COMPUTE)
        activated, slope = gelu_parts(z, SHORT)
        g *= slope
        tl.store(grad + place, g, mask=inside)
        if REMAKE:
            tl.store(activation + place, activated, mask=inside)
        total += g
    tl.store(parts + program.to(tl.int64) * H + h, tl.sum(total, axis=0), mask=h < H)


def _takes(width: int, dot: torch.dtype) -> bool:
    """Whether the kernels do the products, too: not in float32, which they would round or slow."""
    return dot.itemsize == 2 and width <= _WIDEST_ROW


def _options(width: int, dot: torch.dtype) -> dict[str, Any]:
    """Return what both kernels are compiled for."""
    compute = compute_dtype(dot)
    types = {"COMPUTE": TL_DTYPES[compute], "DOT": TL_DTYPES[compute if INTERPRETED else dot]}
    return types | {"SHORT": dot.itemsize == 2, "BD": row_block(width)}


def _forward(
    x: Tensor, w1_HD: Tensor, b1_H: Tensor, w2_DH: Tensor, b2_D: Tensor, learns: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y and, where it learns, the hidden layer and its activation, (R, H), or empty ones."""
    rows_RD = x.reshape(-1, x.shape[-1])
    with torch.autocast(x.device.type, enabled=False):
        hidden_RH = linear(rows_RD, w1_HD, b1_H.to(x.dtype))
        if _takes(x.shape[-1], x.dtype):
            y, activation_RH = _activated_product(hidden_RH, w2_DH, b2_D), x.new_empty(0)
        else:
            activation_RH = gelu(hidden_RH)
            y = linear(activation_RH, w2_DH, b2_D)
    nothing = x.new_empty(0), x.new_empty(0)
    hidden = hidden_RH if learns else nothing[0]
    return y.view(x.shape), hidden, activation_RH if learns and keep else nothing[1]


def _activated_product(hidden_RH: Tensor, w2_DH: Tensor, b2_D: Tensor) -> Tensor:
    """Return the second product, of an activation that is never in memory."""
    (rows, hidden), width = hidden_RH.shape, w2_DH.shape[0]
    y = hidden_RH.new_empty(rows, width)
    if y.numel():
        _gelu_product_kernel[(cdiv(rows, _FORWARD["BM"]),)](
            hidden_RH, w2_DH.contiguous(), b2_D.contiguous(), y, rows, width, hidden,
            **_options(width, hidden_RH.dtype), **_FORWARD,
        )  # fmt: skip
    return y


def _forward_fake(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, w1_HD, _, _, _, learns, keep = inputs
    rows, hidden = x.shape[:-1].numel(), w1_HD.shape[0]
    kept = learns and keep and not _takes(x.shape[-1], x.dtype)
    made = [x.new_empty((rows, hidden) if there else 0) for there in (learns, kept)]
    return x.new_empty(x.shape), made[0], made[1]


def _gradients(
    grad_y: Tensor, x: Tensor, hidden_RH: Tensor, activation_RH: Tensor,
    w1_HD: Tensor, w2_DH: Tensor, needs_x: bool, needs_w1: bool, needs_w2: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x, w1, b1 and w2; of x, w1 and w2 empty ones if not needed."""
    grad_RD, x_RD = (t.reshape(-1, t.shape[-1]).contiguous() for t in (grad_y, x))
    with torch.autocast(x.device.type, enabled=False):
        remake = needs_w2 and activation_RH.ndim < 2
        grad_RH, grad_b1, remade_RH = _deactivate(grad_RD, w2_DH, hidden_RH, remake)
        used_RH = remade_RH if remake else activation_RH
        nothing = [x.new_empty(0) for _ in range(3)]
        grad_x = (grad_RH @ w1_HD).view(x.shape) if needs_x else nothing[0]
        grad_w1 = grad_RH.t() @ x_RD if needs_w1 else nothing[1]
        grad_w2 = grad_RD.t() @ used_RH if needs_w2 else nothing[2]
    return grad_x, grad_w1, grad_b1, grad_w2


def _deactivate(
    grad_RD: Tensor, w2_DH: Tensor, hidden_RH: Tensor, remake: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the hidden layer's gradient, its sum over rows, and the activation if asked for."""
    (rows, hidden), width = hidden_RH.shape, grad_RD.shape[1]
    dot = grad_RD.dtype
    remade_RH = hidden_RH.new_empty((rows, hidden) if remake else (0, 0))
    if _takes(width, dot):
        programs = cdiv(rows, _BACKWARD["BM"])
        parts = hidden_RH.new_empty((programs, hidden), dtype=compute_dtype(dot))
        grad_RH = torch.empty_like(hidden_RH)
        if grad_RH.numel():
            _gelu_slope_product_kernel[(programs,)](
                grad_RD, w2_DH.contiguous(), hidden_RH, grad_RH, remade_RH, parts,
                rows, width, hidden, REMAKE=remake, **_options(width, dot), **_BACKWARD,
            )  # fmt: skip
        return grad_RH, parts.sum(0), remade_RH
    grad_RH = grad_RD @ w2_DH
    columns = cdiv(hidden, _SLOPE_TILE["BH"])
    programs = min(cdiv(rows, _SLOPE_TILE["BR"]), cdiv(_PROGRAMS, max(columns, 1)))
    parts = hidden_RH.new_empty((programs, hidden), dtype=compute_dtype(dot))
    if grad_RH.numel():
        _gelu_slope_kernel[(programs, columns)](
            grad_RH, hidden_RH, remade_RH, parts, rows, hidden, REMAKE=remake,
            COMPUTE=TL_DTYPES[parts.dtype], SHORT=dot.itemsize == 2, **_SLOPE_TILE,
        )  # fmt: skip
    return grad_RH, parts.sum(0), remade_RH


def _gradients_fake(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _, x, _, _, w1_HD, w2_DH, *needs = inputs
    shapes = x.shape, w1_HD.shape, w2_DH.shape
    made = [x.new_empty(s if need else 0) for s, need in zip(shapes, needs, strict=True)]
    grad_b1 = x.new_empty(w1_HD.shape[0], dtype=compute_dtype(x.dtype))
    return made[0], made[1], grad_b1, made[2]


_gradients_op = Op("gelu_mlp_backward", _gradients, _gradients_fake)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, w1, b1, w2, b2, *_ = inputs
    _, hidden, activation = output
    ctx.mark_non_differentiable(hidden, activation)
    # Else both would get gradients of zeros, as large as they are.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, hidden, activation, w1, w2)
    ctx.dtypes = b1.dtype, b2.dtype


def _backward(ctx: Any, grad_y: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad_y is None:
        return (None,) * 7
    x, hidden, activation, w1, w2 = ctx.saved_tensors
    needs_x, needs_w1, needs_b1, needs_w2, needs_b2 = ctx.needs_input_grad[:5]
    grads: list[Tensor | None] = [None] * 4
    if needs_x or needs_w1 or needs_b1 or needs_w2:
        found = _gradients_op(grad_y, x, hidden, activation, w1, w2, needs_x, needs_w1, needs_w2)
        wanted = zip(found, (needs_x, needs_w1, needs_b1, needs_w2), strict=True)
        grads = [g if need else None for g, need in wanted]
    b1_dtype, b2_dtype = ctx.dtypes
    if grads[2] is not None:
        grads[2] = grads[2].to(b1_dtype)
    grad_b2 = None
    if needs_b2:
        sums = grad_y.reshape(-1, grad_y.shape[-1]).sum(0, dtype=compute_dtype(grad_y.dtype))
        grad_b2 = sums.to(b2_dtype)
    return *grads, grad_b2, None, None


_op = Op("gelu_mlp", _forward, _forward_fake, setup=_setup, backward=_backward)


def gelu_mlp(
    x: Tensor,
    w1_HD: Tensor,
    b1_H: Tensor,
    w2_DH: Tensor,
    b2_D: Tensor,
    *,
    keep: bool = True,
    impl: str = "auto",
) -> Tensor:
    """Return W2 gelu(W1 x + b1) + b2, the MLP of a block behind its norm (method 3.5).

    gelu is the exact one, by the normal distribution; in half precision within 3.4e-5 of itself.
    There, up to a width of 256, the activation is made on the way to the second product, in one
    kernel, and never in memory; in the backward the product with W2, the activation's slope, the
    sum for b1 and the activation are one kernel; the other products are plain matrix products.
    Wider rows, float32 and float64 have plain products throughout, under torch's own switch for
    TF32. Products take the dtype of `x`, or autocast's where it is on, and sum in float32 (float64
    for float64), in which the activation is computed; the hidden layer is rounded before it.

    Args:
        x: Rows that a norm has seen, (..., D).
        w1_HD: Weight of the first linear layer.
        b1_H: Its bias.
        w2_DH: Weight of the second linear layer.
        b2_D: Its bias; its gradient is a pass over the output's. Pass it detached where
            `residual_layer_norm` gets it as the bias that was added.
        keep: Whether the backward finds the activation, (..., H), in memory where the forward had
            it there; else it makes it again. The hidden layer before it is kept in any case.
        impl: "auto", "triton", "cpu" or "torch".

    Returns:
        The shape of `x`, in the products' dtype; differentiable in all five tensors, whose
        gradients have their dtypes.

    Raises:
        TypeError: A dtype is not usable.
        ValueError: A shape, device, `keep` or `impl` is not usable.
    """
    if x.ndim == 0 or x.shape[-1] == 0:
        raise bad_value("x", tuple(x.shape), "expected (..., D) with D at least 1")
    if w1_HD.ndim != 2:
        raise bad_value("w1", tuple(w1_HD.shape), "expected (H, D)")
    width, hidden = x.shape[-1], w1_HD.shape[0]
    check_float("x", x)
    check_tensors(
        x.device,
        {
            "w1": (w1_HD, (hidden, width), "(H, D)"),
            "b1": (b1_H, (hidden,), "(H,)"),
            "w2": (w2_DH, (width, hidden), "(D, H)"),
            "b2": (b2_D, (width,), "(D,)"),
        },
    )
    if not isinstance(keep, bool):
        raise bad_value("keep", repr(keep), "pass True or False")
    dot = product_dtype(x)
    if choose(impl, x.device) == "torch":
        return gelu_mlp_ref(x, w1_HD, b1_H, w2_DH, b2_D, dot)
    learns = torch.is_grad_enabled() and any(p.requires_grad for p in (x, w1_HD, b1_H, w2_DH))
    y: Tensor = _op(x.to(dot), w1_HD.to(dot), b1_H, w2_DH.to(dot), b2_D.to(dot), learns, keep)[0]
    return y
