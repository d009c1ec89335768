# SPDX-License-Identifier: Apache-2.0
"""KoLeo: spreads features over the sphere, by the distance of each to its nearest neighbour.

Shapes: V views, N samples, R = V N rows, D features, S parts of the columns.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, normalize

from sjepa_kernels._dispatch import choose
from sjepa_kernels._library import Op
from sjepa_kernels._triton import INTERPRETED, TL_DTYPES, cdiv, compute_dtype, row_tile, tl, triton
from sjepa_kernels.losses.features import as_views, check_width
from sjepa_kernels.losses.shared import UNFUSED

# Of a norm at least, added to each number of a difference, and added to a distance, as in DINOv2.
_EPS = 1e-8
# Rows of the reference whose products are in memory at a time.
_CHUNK = 1024
# A tile of products and its warps: for float32 the fastest without spills of those measured on an
# H200 with Triton 3.6 (2,048 rows of 1,024 numbers: 146 us, and 162 by the other); then into how
# many parts the columns are cut at most. From shapes and types alone.
_FLOAT32_TILE = {"BM": 128, "BN": 64, "BD": 32, "num_warps": 8}
_TILE = {"BM": 64, "BN": 64, "BD": 32, "num_warps": 4}
_PARTS = 32


def koleo_ref(features_VND: Tensor) -> Tensor:
    """Plain PyTorch form of the loss."""
    unit_VND = normalize(features_VND, dim=-1, eps=_EPS)
    # Not `unit[ids]`, whose gradient differs from run to run on several CPU threads.
    nearest_RD = embedding(nearest_ids(unit_VND.detach()), unit_VND.flatten(0, 1))
    distance_R = torch.linalg.vector_norm(unit_VND.flatten(0, 1) - nearest_RD + _EPS, dim=-1)
    loss: Tensor = -(distance_R + _EPS).log().mean()
    return loss


def nearest_ids(unit_VND: Tensor) -> Tensor:
    """Return each row's neighbour in its view, by dot product, as a row of all views, (R,)."""
    views, samples, _ = unit_VND.shape
    place = torch.arange(samples, device=unit_VND.device)
    found = []
    for start in range(0, samples, _CHUNK):
        rows = slice(start, start + _CHUNK)
        dots_VMN = unit_VND[:, rows] @ unit_VND.mT
        dots_VMN.masked_fill_(place[rows, None] == place, float("-inf"))
        found.append(dots_VMN.argmax(dim=2))
    first_V1 = samples * torch.arange(views, device=unit_VND.device)[:, None]
    return (torch.cat(found, dim=1) + first_V1).flatten()


@triton.jit
def _norms_kernel(z, inverse, R, D, COMPUTE: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr):
    """One over each row's norm."""
    r = tl.program_id(0) * BR + tl.arange(0, BR)
    d = tl.arange(0, BD)
    inside = (r < R)[:, None] & (d < D)[None, :]
    x = tl.load(z + r.to(tl.int64)[:, None] * D + d[None, :], mask=inside, other=0.0).to(COMPUTE)
    norm = tl.sqrt(tl.sum(x * x, axis=1))
    # NaN stays NaN.
    tl.store(inverse + r, 1.0 / tl.where(norm < 1e-8, 1e-8, norm), mask=r < R)


@triton.jit
def _nearest_kernel(
    z, inverse, best, which, N, D, tiles, R,
    COMPUTE: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Of a tile of a view's rows and a part of its columns: the largest product, and whose it is.

    A row's own norm changes nothing about which is largest, so only columns are divided by theirs.
    """
    v = (tl.program_id(0) // tiles).to(tl.int64)
    rows = tl.program_id(0) % tiles * BM + tl.arange(0, BM)
    d = tl.arange(0, BD)
    z += v * N * D
    top = tl.full((BM,), float("-inf"), COMPUTE)
    at = tl.zeros((BM,), tl.int32)
    for start in range(tl.program_id(1) * BN, N, tl.num_programs(1) * BN):
        columns = start + tl.arange(0, BN)
        dots = tl.zeros((BM, BN), COMPUTE)
        for first in range(0, D, BD):
            in_d = first + d < D
            place = rows.to(tl.int64)[:, None] * D + (first + d)[None, :]
            a = tl.load(z + place, mask=(rows < N)[:, None] & in_d[None, :], other=0.0).to(DOT)
            place = columns.to(tl.int64)[:, None] * D + (first + d)[None, :]
            b = tl.load(z + place, mask=(columns < N)[:, None] & in_d[None, :], other=0.0).to(DOT)
            dots = tl.dot(a, tl.trans(b), dots, input_precision=PRECISION, out_dtype=COMPUTE)
        dots *= tl.load(inverse + v * N + columns, mask=columns < N, other=0.0)[None, :]
        other = (columns < N)[None, :] & (rows[:, None] != columns[None, :])
        dots = tl.where(other, dots, float("-inf"))
        value, place = tl.max(dots, axis=1, return_indices=True)
        # The first among equals, and never what is no number.
        at = tl.where(value > top, start + place, at)
        top = tl.where(value > top, value, top)
    to = tl.program_id(1).to(tl.int64) * R + v * N + rows
    tl.store(best + to, top, mask=rows < N)
    tl.store(which + to, at, mask=rows < N)


@triton.jit
def _unit_rows(z, inverse, r, inside, D, COMPUTE: tl.constexpr, BD: tl.constexpr):
    """Rows r divided by their norms; zeros where they are not inside."""
    d = tl.arange(0, BD)
    place = r.to(tl.int64)[:, None] * D + d[None, :]
    x = tl.load(z + place, mask=inside[:, None] & (d < D)[None, :], other=0.0).to(COMPUTE)
    return x * tl.load(inverse + r, mask=inside, other=0.0)[:, None]


@triton.jit
def _distances_kernel(
    z, inverse, best, which, ids, distances, N, D, R, parts,
    COMPUTE: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The nearest of all parts, and the distance to it."""
    r = tl.program_id(0) * BR + tl.arange(0, BR)
    inside = r < R
    top = tl.full((BR,), float("-inf"), COMPUTE)
    at = tl.zeros((BR,), tl.int32)
    place = r.to(tl.int64)
    for _ in range(parts):
        value = tl.load(best + place, mask=inside, other=0.0)
        found = tl.load(which + place, mask=inside, other=0)
        # The first among equals, here too: the parts' columns are interleaved.
        better = (value > top) | ((value == top) & (found < at))
        at = tl.where(better, found, at)
        top = tl.where(better, value, top)
        place += R
    near = r // N * N + at
    gap = _unit_rows(z, inverse, r, inside, D, COMPUTE, BD)
    gap = gap - _unit_rows(z, inverse, near, inside, D, COMPUTE, BD) + 1e-8
    gap = tl.where((tl.arange(0, BD) < D)[None, :], gap, 0.0)
    tl.store(ids + r, near.to(tl.int64), mask=inside)
    tl.store(distances + r, tl.sqrt(tl.sum(gap * gap, axis=1)), mask=inside)


@triton.jit
def _slope(distance):
    """Of log(distance + eps) by a difference, over that difference; 0 where there is no slope."""
    some = tl.where(distance > 0.0, distance, 1.0)
    return tl.where(distance > 0.0, 1.0 / (some * (distance + 1e-8)), 0.0)


@triton.jit
def _gradient_kernel(
    z, inverse, ids, order, bounds, distances, grad_loss, out, D, R,
    COMPUTE: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Of one row: as the one that has a neighbour, and as the neighbour of those that name it.

    These come in the order of their places, a tile of rows at a time, so a sum repeats bitwise.
    """
    row = tl.program_id(0) + tl.zeros((1,), tl.int32)
    d = tl.arange(0, BD)
    in_d = (d < D)[None, :]
    x = _unit_rows(z, inverse, row, row < R, D, COMPUTE, BD)
    near = _unit_rows(z, inverse, tl.load(ids + row), row < R, D, COMPUTE, BD)
    grad = (x - near + 1e-8) * _slope(tl.load(distances + row))[:, None]
    end = tl.load(bounds + tl.program_id(0) + 1)
    for start in range(tl.load(bounds + tl.program_id(0)), end, BR):
        p = start + tl.arange(0, BR)
        r = tl.load(order + p, mask=p < end, other=0)
        others = _unit_rows(z, inverse, r, p < end, D, COMPUTE, BD)
        slope = _slope(tl.load(distances + r, mask=p < end, other=0.0))
        grad -= tl.sum((others - x + 1e-8) * slope[:, None], axis=0)[None, :]
    grad = tl.where(in_d, grad, 0.0) * (-tl.load(grad_loss).to(COMPUTE) / R)
    # Through the division by the norm, which is a constant where it is below eps.
    place = tl.program_id(0).to(tl.int64) * D + d[None, :]
    raw = tl.load(z + place, mask=in_d, other=0.0).to(COMPUTE)
    along = tl.where(tl.sum(raw * raw) >= 1e-16, tl.sum(grad * x), 0.0)
    grad = (grad - along * x) * tl.load(inverse + row)[:, None]
    tl.store(out + place, grad, mask=in_d)


def _forward(features_VND: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the loss, and of each row the inverse norm, the neighbour and the distance to it."""
    views, samples, width = features_VND.shape
    z = features_VND.contiguous()
    loss, inverse, ids, distances = _fake(z)
    total = views * samples
    compute = TL_DTYPES[inverse.dtype]
    rows, columns, warps = row_tile(width, 4096)
    shape: dict[str, Any] = {"COMPUTE": compute, "BR": rows, "BD": columns, "num_warps": warps}
    # Else the distance of equal rows would be the rounding of the product that is fused with their
    # difference.
    shape |= UNFUSED
    _norms_kernel[(cdiv(total, rows),)](z, inverse, total, width, **shape)

    # Products of half precision are exact in float32; those of float32 are of three in TF32, which
    # err like float32's own.
    three = z.dtype == torch.float32
    tile = _FLOAT32_TILE if three else _TILE
    tiles, parts = cdiv(samples, tile["BM"]), min(cdiv(samples, tile["BN"]), _PARTS)
    best = inverse.new_empty((parts, total))
    which = inverse.new_empty((parts, total), dtype=torch.int32)
    dot = compute if INTERPRETED else TL_DTYPES[z.dtype]
    _nearest_kernel[(views * tiles, parts)](
        z, inverse, best, which, samples, width, tiles, total,
        COMPUTE=compute, DOT=dot, PRECISION="tf32x3" if three else "ieee", **tile,
    )  # fmt: skip
    _distances_kernel[(cdiv(total, rows),)](
        z, inverse, best, which, ids, distances, samples, width, total, parts, **shape
    )
    loss.copy_((distances + _EPS).log().mean().neg())
    return loss, inverse, ids, distances


def _fake(features_VND: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    views, samples, _ = features_VND.shape
    rows, dtype = (views * samples,), compute_dtype(features_VND.dtype)
    return (
        features_VND.new_empty((), dtype=dtype),
        features_VND.new_empty(rows, dtype=dtype),
        features_VND.new_empty(rows, dtype=torch.int64),
        features_VND.new_empty(rows, dtype=dtype),
    )


def _gradient(
    features_VND: Tensor, inverse_R: Tensor, ids_R: Tensor, distance_R: Tensor, grad_loss: Tensor
) -> Tensor:
    """Return the gradient of the features."""
    total, width = ids_R.numel(), features_VND.shape[-1]
    sorted_ids, order = ids_R.sort(stable=True)
    # Those that name row r are at bounds[r] to bounds[r + 1] of the order.
    bounds = torch.searchsorted(sorted_ids, torch.arange(total + 1, device=ids_R.device))
    out = torch.empty_like(features_VND, memory_format=torch.contiguous_format)
    rows, columns, warps = row_tile(width, 4096)
    _gradient_kernel[(total,)](
        features_VND.contiguous(), inverse_R, ids_R, order, bounds, distance_R, grad_loss, out,
        width, total, COMPUTE=TL_DTYPES[inverse_R.dtype], BR=rows, BD=columns, num_warps=warps,
        **UNFUSED,
    )  # fmt: skip
    return out


def _gradient_fake(features_VND: Tensor, *_: Any) -> Tensor:
    return features_VND.new_empty(features_VND.shape)


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, *output[1:])


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> Tensor | None:
    return None if grad_loss is None else _gradient_op(*ctx.saved_tensors, grad_loss)


_gradient_op = Op("koleo_gradient", _gradient, _gradient_fake)
_op = Op("koleo", _forward, _fake, setup=_setup, backward=_backward)


def koleo(features: Tensor, *, impl: str = "auto") -> Tensor:
    """Spread of features over the sphere: minus the mean log distance to the nearest one (KoLeo).

    loss = -mean_i log(|x_i - x_n(i) + eps| + eps), n(i) = argmax_{j != i} x_i . x_j

    with x = z / max(|z|, eps) and eps = 1e-8, as in DINOv2 (Sablayrolles et al. 2019; Oquab et al.
    2023), whose three places for eps these are: the second is added to each number of the
    difference. The neighbour is one of the same view and never the row itself; of equally near ones
    it is the first, where DINOv2 takes any. The gradient goes to both rows of a pair; as a
    neighbour of many, a row sums in their order, so it repeats bitwise. Arithmetic is float32
    (float64 for float64), also under autocast. The matrix of products is never in memory.

    DINOv2 adds up the losses of its global crops (V times the mean here) and weighs them by 0.1.
    Each process takes its own samples.

    Args:
        features: z, (N, D), or (V, N, D) for the mean of the views' losses.
        impl: "auto", "triton", "cpu" or "torch".

    Returns:
        The loss, 0-dim, float32 (float64 for float64 features).

    Raises:
        TypeError: The dtype is not usable.
        ValueError: There are fewer than two samples, a shape or `impl` is not usable, or the width
            exceeds 4,096 in Triton.
    """
    features_VND = as_views(features, least=2)
    chosen = choose(impl, features.device)
    check_width(features, chosen)
    with torch.autocast(features.device.type, enabled=False):
        if chosen == "torch":
            return koleo_ref(features_VND.to(compute_dtype(features.dtype)))
        loss: Tensor = _op(features_VND)[0]
    return loss
