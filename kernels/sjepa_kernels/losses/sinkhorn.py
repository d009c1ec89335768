# SPDX-License-Identifier: Apache-2.0
"""Sinkhorn-Knopp of DINOv2 and DINOv3 as a center of the teacher's logits.

Shapes: B rows, K prototypes.
"""

import math
from typing import Any

import torch
from torch import Tensor

from sjepa_kernels._checks import bad_type, bad_value, check_float
from sjepa_kernels._dispatch import choose
from sjepa_kernels._library import Op
from sjepa_kernels._triton import (
    TL_DTYPES,
    cdiv,
    compute_dtype,
    device_scalar,
    row_block,
    tl,
    triton,
)
from sjepa_kernels.losses.center import AsyncReduce, start_center_sum
from sjepa_kernels.losses.cpu import has_cpu_code, sinkhorn_step_cpu
from sjepa_kernels.losses.row_stats import row_stats_kernel
from sjepa_kernels.losses.shared import UNFUSED, check_temperatures

# Rows and columns of a tile.
_ROWS, _COLUMNS = 4, 512
# Of the sum over processes that stands for a maximum: its largest term is at most so many times
# log(processes) below it, and must stay a float64; its terms may be e^(+-700 times this).
_SOFT = 100.0


def sinkhorn_step_ref(teacher_BK: Tensor, center_K: Tensor, temp: Tensor, first: bool) -> Tensor:
    """Plain PyTorch form of a step: the logarithms of the columns' sums over samples, (K,).

    With logits y = (t - c) / temp the sums are of e^y in the first step, where samples have no
    scale yet, and of softmax(y) over prototypes in the others.
    """
    y_BK = (teacher_BK.to(center_K.dtype) - center_K) / temp
    if not first:
        y_BK = torch.log_softmax(y_BK, dim=1)
    return torch.logsumexp(y_BK, dim=0)


@triton.jit
def _column_sums_kernel(
    teacher, center, temp, stats, parts, B, K, chunk,
    FIRST: tl.constexpr, COMPUTE: tl.constexpr, BB: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Sums over some samples of a tile of columns; exponents are never positive."""
    part = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BK + tl.arange(0, BK)
    c = tl.load(center + k, mask=k < K, other=0.0)[None, :]
    scale = 1.0 / tl.load(temp)
    sums = tl.zeros((BB, BK), COMPUTE)
    for start in range(part * chunk, tl.minimum((part + 1) * chunk, B), BB):
        b = start + tl.arange(0, BB)
        inside = (b < B)[:, None] & (k < K)[None, :]
        t = tl.load(teacher + b[:, None] * K + k[None, :], mask=inside, other=0.0).to(COMPUTE)
        y = tl.where(inside, (t - c) * scale, float("-inf"))
        if FIRST:
            sums += tl.exp(y)
        else:
            top = tl.load(stats + b, mask=b < B, other=0.0)[:, None]
            total = tl.load(stats + B + b, mask=b < B, other=1.0)[:, None]
            sums += tl.exp(y - top) / total
    tl.store(parts + part * K + k, tl.sum(sums, axis=0), mask=k < K)


def _launch(teacher: Tensor, center: Tensor, temp: Tensor, first: bool) -> Tensor:
    teacher, center = teacher.contiguous(), center.contiguous()
    (rows, width), dtype = teacher.shape, center.dtype
    compute = TL_DTYPES[dtype]
    stats = teacher.new_empty((2, 0 if first else rows), dtype=dtype)
    if not first:
        columns = row_block(width)
        row_stats_kernel[(rows,)](
            teacher, center, temp, stats, rows, width,
            HAS_CENTER=True, COMPUTE=compute, BD=min(columns, 4096),
            num_warps=8 if columns >= 4096 else 4, **UNFUSED,
        )  # fmt: skip
    # Enough programs to fill a large GPU; the split follows from shapes alone, so sums repeat.
    tiles = cdiv(width, _COLUMNS)
    chunk = _ROWS * cdiv(cdiv(rows, _ROWS), max(1, 2112 // tiles))
    parts = teacher.new_empty((cdiv(rows, chunk), width), dtype=dtype)
    _column_sums_kernel[(len(parts), tiles)](
        teacher, center, temp, stats, parts, rows, width, chunk,
        FIRST=first, COMPUTE=compute, BB=_ROWS, BK=_COLUMNS, **UNFUSED,
    )  # fmt: skip
    return parts.sum(0).log()


def _body(teacher: Tensor, center: Tensor, temp: Tensor, first: bool, impl: str) -> Tensor:
    """Return `sinkhorn_step_ref`, in C++ or by the kernels; needs rows.

    In the first step the center is the columns' maximum, so that no exponent is positive.
    """
    run = sinkhorn_step_cpu if impl == "cpu" else _launch
    return run(teacher, center, temp, first)


def _fake(_: Tensor, center: Tensor, *__: Any) -> Tensor:
    return center.new_empty(center.shape)


_op = Op("sinkhorn_step", _body, _fake)


def sinkhorn_center(
    teacher_BK: Tensor,
    temp_target: float | Tensor,
    iterations: int = 3,
    *,
    all_reduce: AsyncReduce | None = None,
    impl: str = "auto",
) -> Tensor:
    """Center with which a softmax is the Sinkhorn-Knopp of DINOv2 and DINOv3.

    They start from Q = exp(t / temp) and, `iterations` times, divide each prototype by K times its
    sum over samples and then each sample by B times its sum over prototypes (Caron et al. 2020,
    Cuturi 2013). What is left of a sample is B Q[b, k] = softmax over k of t[b, k] / temp +
    log r[k], with one scaling r of the prototypes: samples' scalings, and all constants with them,
    cancel in the softmax. So c = -temp log r is a center, and
    `centered_softmax_cross_entropy(student, t, c, temp_target=temp)` and
    `centered_crop_cross_entropy` are the loss on Sinkhorn's probabilities, which nobody stores.

    The first iteration has no samples' scalings yet: c = temp log mean_b exp(t / temp). Each
    further one adds temp log(K mean_b p[b, k]), p = softmax((t - c) / temp), and is two reads of
    the teacher on a GPU and one in C++. Exponents are below 0, a column's sum is at least 1 in the
    first iteration and 1 / K thereafter: logits up to 10^8 temp give finite centers. Arithmetic is
    float32 (float64 for a float64 teacher), and repeats bitwise.

    Args:
        teacher_BK: Logits t of all samples to be balanced: both global crops in DINOv2's loss,
            which is `teacher_TBK.flatten(0, 1)`, and the masked patches in iBOT's.
        temp_target: Temperature, a float or a 0-dim tensor above zero; a constant. Pass the loss
            the same one.
        iterations: At least 1 (3 in DINOv2 and DINOv3).
        all_reduce: Sums its argument, float64 (K + 1,), over processes, as in `update_center_`: a
            sum for each prototype with the number of samples appended, once in each iteration, and
            once more in the first for a scale that all share. Logits must then be within 70,000
            temp of 0, else the center is NaN. Processes may have any number of samples, also none.
        impl: "auto", "triton", "cpu" or "torch".

    Returns:
        The center c, (K,), float32 (float64 for a float64 teacher), of no samples 0.

    Raises:
        TypeError: A dtype or `all_reduce` is not usable.
        ValueError: A shape, the temperature, the number of iterations or `impl` is not usable.
    """
    _check(teacher_BK, iterations, all_reduce)
    check_temperatures(temp_target=temp_target)
    chosen = choose(impl, teacher_BK.device, cpu=has_cpu_code(teacher_BK))
    samples, width = teacher_BK.shape
    temp = device_scalar(temp_target, teacher_BK)
    teacher = teacher_BK.detach()
    if chosen == "cpu":
        teacher = teacher.float().contiguous()
    center = teacher.new_zeros(width, dtype=compute_dtype(teacher.dtype))
    if samples == 0 and all_reduce is None:
        return center
    if samples > 0:
        center = teacher.amax(dim=0).to(center.dtype)
    for iteration in range(iterations):
        first = iteration == 0
        if samples == 0:
            log_sums = torch.full_like(center, -math.inf)
        elif chosen == "torch":
            log_sums = sinkhorn_step_ref(teacher, center, temp, first)
        else:
            log_sums = _op(teacher, center, temp, first, chosen)
        if all_reduce is None:
            # What the sums are once they are even: each sample's is 1, shared by K prototypes.
            center = center + temp * (log_sums - math.log(samples if first else samples / width))
        elif first:
            center = _first_of_all(center, log_sums, temp, samples, all_reduce)
        else:
            own = log_sums.double().exp()
            sums, count = start_center_sum(own, samples, all_reduce).result()
            moved = center + temp * (sums * width / count).log()
            center = torch.where(count > 0, moved, center).to(log_sums.dtype)
    return center


def _first_of_all(
    own_max: Tensor, log_sums: Tensor, temp: Tensor, samples: int, all_reduce: AsyncReduce
) -> Tensor:
    """Return the first iteration's center over processes, from sums below a process's own maxima.

    Only sums are to be had of the others, so what stands for the largest logarithm is a sum of
    powers: it is no less than the largest, and more by `_SOFT` log(processes) at most.
    """
    own = own_max.double() / temp + log_sums
    powers, _ = start_center_sum((own / _SOFT).exp(), samples, all_reduce).result()
    top = _SOFT * powers.log()
    sums, count = start_center_sum((own - top).exp(), samples, all_reduce).result()
    center = temp * (top + (sums / count).log())
    return torch.where(count > 0, center, 0).to(log_sums.dtype)


def _check(teacher: Tensor, iterations: int, all_reduce: AsyncReduce | None) -> None:
    if teacher.ndim != 2 or teacher.shape[1] == 0:
        fix = "expected (B, K) with K at least 1; flatten crops"
        raise bad_value("teacher", tuple(teacher.shape), fix)
    check_float("teacher", teacher)
    if not isinstance(iterations, int) or iterations < 1:
        raise bad_value("iterations", iterations, "pass a whole number, at least 1 (DINOv2: 3)")
    if all_reduce is not None and not callable(all_reduce):
        raise bad_type("all_reduce", type(all_reduce), "pass a function that sums over processes")
