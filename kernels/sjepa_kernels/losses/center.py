# SPDX-License-Identifier: Apache-2.0
"""The center of the teacher's features: a running mean kept apart from the loss.

Shapes: D features.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sjepa_kernels._checks import (
    bad_value,
    check_float,
    check_fraction,
    check_not_expanded,
    check_number,
    check_same_device,
    check_shape,
)
from sjepa_kernels._triton import compute_dtype


class Work(Protocol):
    """A sum over processes that is under way, as `torch.distributed.all_reduce` returns it."""

    def wait(self) -> Any: ...


Reduce = Callable[[Tensor], Tensor | None]
# One that may also leave the sum, in place, to a later `wait()`.
AsyncReduce = Callable[[Tensor], Tensor | Work | None]


class CenterSum(NamedTuple):
    """A batch sum with its number of rows appended (D + 1,), on its way through all processes."""

    total: Tensor
    work: Work | None

    def result(self) -> tuple[Tensor, Tensor]:
        """Wait for the other processes, and return the sum (D,) and the number of rows, 0-dim."""
        if self.work is not None:
            self.work.wait()
        return self.total[:-1], self.total[-1]


@torch.no_grad()
def start_center_sum(
    center_sum_D: Tensor, count: int | Tensor, all_reduce: AsyncReduce
) -> CenterSum:
    """Begin to sum a batch sum and its number of rows over processes, in float32 at least."""
    center_sum_D = center_sum_D.to(compute_dtype(center_sum_D.dtype))
    if not isinstance(count, Tensor):
        count = torch.full_like(center_sum_D[:1], count)
    total = torch.cat([center_sum_D, count.to(center_sum_D).reshape(1)])
    summed = all_reduce(total)
    if isinstance(summed, Tensor):
        return CenterSum(summed, None)
    return CenterSum(total, summed)


@torch.no_grad()
def update_center_(
    center_D: Tensor,
    center_sum_D: Tensor,
    count: int | Tensor,
    momentum: float | Tensor,
    *,
    all_reduce: AsyncReduce | None = None,
) -> None:
    """Move the center towards a batch mean, in place: c <- m c + (1 - m) sum / count.

    A mean over no rows leaves the center where it is. The mean is computed in float32 at least.

    Args:
        center_D: The center.
        center_sum_D: Sum of teacher rows, as `centered_softmax_cross_entropy` returns it.
        count: Number of rows in the sum.
        momentum: m in [0, 1] (0.9 in S-JEPA).
        all_reduce: Sums its argument, the batch sum with the count appended (D + 1,), over
            processes, in place or as a new tensor: for instance `torch.distributed.all_reduce`,
            or a `functools.partial` of it that names a group. What it has only begun is waited for.

    Raises:
        TypeError: The center or the sum is not floating point.
        ValueError: Shapes or devices differ, D is 0, the center is expanded, the count is negative
            or not finite, or the momentum is outside [0, 1].
    """
    if center_D.ndim != 1 or center_D.shape[0] == 0:
        raise bad_value("center", tuple(center_D.shape), "expected (D,) with D at least 1")
    check_shape("center_sum", center_sum_D, tuple(center_D.shape), "the center's shape")
    check_not_expanded("center", center_D)
    check_float("center", center_D)
    check_float("center_sum", center_sum_D)
    check_same_device(center_D.device, center_sum=center_sum_D)
    check_number("count", count, lambda n: 0 <= n < math.inf, "pass the number of rows in the sum")
    check_fraction("momentum", momentum)
    center_sum_D = center_sum_D.to(compute_dtype(center_sum_D.dtype))
    if all_reduce is not None:
        center_sum_D, count = start_center_sum(center_sum_D, count, all_reduce).result()
    if not isinstance(count, Tensor):
        if count == 0:
            return
        mean = center_sum_D / count
    else:
        # Of several processes, only the device knows whether they have rows.
        mean = torch.where(count > 0, center_sum_D / count, center_D)
    mean = mean.to(center_D.dtype)
    weight = 1 - momentum
    if isinstance(weight, Tensor):
        weight = weight.to(center_D.dtype)
    center_D.lerp_(mean, weight)


@torch.no_grad()
def sum_of_used_rows(teacher: Tensor, index_R: Tensor | None) -> Tensor:
    """Sum the teacher's rows, each as often as `index_R` names it, without gathering them.

    Without an index every row counts once. The sum is float32 (float64 for a float64 teacher).
    """
    wide = teacher.to(compute_dtype(teacher.dtype))
    if index_R is None:
        return wide.sum(dim=0)
    times = wide.new_zeros(teacher.shape[0])
    times.index_add_(0, index_R, wide.new_ones(()).expand(index_R.shape[0]))
    return times @ wide
