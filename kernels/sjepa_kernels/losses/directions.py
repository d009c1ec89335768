# SPDX-License-Identifier: Apache-2.0
"""Random unit directions of a training step, from Philox: what `sigreg` and `visreg` project onto.

Shapes: K directions, D features.
"""

import math
from typing import Any

import torch
from torch import Tensor

from sjepa_kernels._checks import (
    bad_value,
    check_int64,
    check_integers,
    check_same_device,
    check_shape,
)
from sjepa_kernels._library import Op
from sjepa_kernels._triton import TL_DTYPES, cdiv, row_tile, tl, triton
from sjepa_kernels.losses.sigreg_cpu import directions_cpu
from sjepa_kernels.philox import philox4x32, philox4x32_device
from sjepa_kernels.purposes import DIRECTION


def unit_directions_ref(
    seed: Tensor, step: Tensor, count: int, width: int, dtype: torch.dtype
) -> Tensor:
    """Plain PyTorch form of `unit_directions`."""
    block = torch.arange((width + 3) // 4, device=seed.device)
    row = torch.arange(count, device=seed.device)[:, None]
    words = torch.stack(philox4x32(seed, block, row, step, DIRECTION), dim=-1) >> 8
    # An odd number of 2^-24 is neither 0 nor 1, so the logarithm is neither infinite nor 0.
    radius = torch.sqrt(-2 * torch.log((words[..., 0::2] | 1).to(dtype) * 2.0**-24))
    angle = words[..., 1::2].to(dtype) * (2.0**-24 * 2 * math.pi)
    normals = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
    rows_KD = normals.flatten(1)[:, :width]
    unit_KD: Tensor = rows_KD / torch.linalg.vector_norm(rows_KD, dim=1, keepdim=True)
    return unit_KD


@triton.jit
def _directions_kernel(
    seed, step, out, K, D,
    PURPOSE: tl.constexpr, COMPUTE: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Whole directions: a number of each pair that Box and Muller make of two words."""
    k = tl.program_id(0) * BR + tl.arange(0, BR)[:, None]
    d = tl.arange(0, BD)[None, :]
    inside = (k < K) & (d < D)
    place = (k * 0 + d).to(tl.uint32)
    zero = place - place
    bits = tl.load(seed)
    w0, w1, w2, w3 = philox4x32_device(
        bits.to(tl.uint32), (bits >> 32).to(tl.uint32), place >> 2, zero + k.to(tl.uint32),
        zero + tl.load(step).to(tl.uint32), zero + PURPOSE,
    )  # fmt: skip
    first = (place & 2) == 0
    near = ((tl.where(first, w0, w2) >> 8) | 1).to(COMPUTE) * 5.9604644775390625e-08
    turn = (tl.where(first, w1, w3) >> 8).to(COMPUTE) * 3.7450702829239e-07
    wave = tl.where((place & 1) == 0, tl.cos(turn), tl.sin(turn))
    x = tl.where(inside, tl.sqrt(-2.0 * tl.log(near)) * wave, 0.0)
    squares = tl.where(k < K, tl.sum(x * x, axis=1)[:, None], 1.0)
    x = x / tl.sqrt(squares)
    tl.store(out + k.to(tl.int64) * D + d, x, mask=inside)


def _launch(seed: Tensor, step: Tensor, out_KD: Tensor) -> None:
    count, width = out_KD.shape
    rows, columns, warps = row_tile(width, 1024)
    _directions_kernel[(cdiv(count, rows),)](
        seed, step, out_KD, count, width,
        PURPOSE=DIRECTION, COMPUTE=TL_DTYPES[out_KD.dtype], BR=rows, BD=columns, num_warps=warps,
    )  # fmt: skip


def _body(
    seed: Tensor, step: Tensor, count: int, width: int, dtype: torch.dtype, impl: str
) -> Tensor:
    out_KD: Tensor = _fake(seed, step, count, width, dtype)
    run = directions_cpu if impl == "cpu" else _launch
    run(seed, step, out_KD)
    return out_KD


def _fake(*inputs: Any) -> Tensor:
    seed, _, count, width, dtype, *_ = inputs
    out_KD: Tensor = seed.new_empty((count, width), dtype=dtype)
    return out_KD


_op = Op("unit_directions", _body, _fake)


def unit_directions(
    seed: Tensor, step: Tensor, count: int, width: int, dtype: torch.dtype, impl: str
) -> Tensor:
    """Return K unit vectors, uniform on the sphere, the same wherever (seed, step) are the same.

    Number d of direction k is d % 4 of the four normals that Box and Muller's formula makes of the
    Philox words at the counters (d // 4, k, step, DIRECTION); then rows are divided by their norms.
    The words are the same bits everywhere; implementations differ by the rounding of log and cos.

    Args:
        seed: 0-dim int64.
        step: 0-dim int32 or int64, on the same device.
        count: K.
        width: D.
        dtype: float32 or float64.
        impl: An implementation that `choose` has returned.

    Returns:
        (K, D), without a gradient.
    """
    if impl == "torch":
        return unit_directions_ref(seed, step, count, width, dtype)
    out: Tensor = _op(seed, step, count, width, dtype, impl)
    return out


def check_draw(features: Tensor, seed: Tensor, step: Tensor | int, directions: int) -> Tensor:
    """Check what chooses the directions of features, and return the step as a tensor."""
    check_int64("seed", seed)
    check_shape("seed", seed, (), "a 0-dim tensor")
    check_same_device(features.device, seed=seed)
    if not 1 <= directions < 1 << 31:
        raise bad_value("directions", directions, "pass how many to draw, at least 1")
    if not isinstance(step, Tensor):
        return torch.full((), step, device=features.device, dtype=torch.int64)
    check_shape("step", step, (), "a 0-dim tensor")
    check_integers("step", step)
    check_same_device(features.device, step=step)
    return step
