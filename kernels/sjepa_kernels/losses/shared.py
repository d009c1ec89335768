# SPDX-License-Identifier: Apache-2.0
"""What the fused cross-entropies share: checks, outputs, the gradient that the forward computes.

The gradient is saved in the student's dtype, before the backward multiplies it by the gradient of
the loss. Bfloat16 has float32's range for that; float16 does not: a loss scale would come too late
for what has become 0. So a float16 gradient is saved as what is left without its share 1 / (temp R)
and times `HALF_RANGE`, a number of -2^15 to 2^15 (up to twice that where given probabilities sum to
2), and the share is a factor of the backward. Of the ways to keep its range this one moves the
fewest bytes: 6 for each number, 2 written by the forward and 4 for its multiplication in place.
Saved in float32 it is 10, and computed again in the backward 6 to 8, after a second read of both
sides. (A loss scale above 2^15 temp R, of few rows or a huge scale, would leave eager a larger
range, up to its overflow.)

So a gradient that is multiplied by other than a power of two, as a float16 one always is, is
rounded twice. In norm the error is 1.1 to 1.6 times that of eager's one rounding, and 2.9 times in
one of twelve draws of DINO's size in bfloat16, where a few numbers make up a quarter of it.

The C++ needs none of this: its gradient is float32, and a half-precision student is cast outside.
"""

from typing import Any

import torch
from torch import Tensor

from sjepa_kernels._checks import (
    bad_value,
    check_float,
    check_ids,
    check_positive,
    check_same_device,
    check_shape,
    check_tensors,
)
from sjepa_kernels._triton import compute_dtype, device_scalar, tl

# A fused multiply-add would take a scaled number as it was before rounding, and subtract from it
# its row's maximum as it is behind: a row of one number would not have a loss of 0.
UNFUSED = {"enable_fp_fusion": False}
# The loss, the column sums of the teacher, d loss / d student (empty where it is not needed), and
# what that is still to be multiplied by (empty but for float16).
Outputs = tuple[Tensor, Tensor, Tensor, Tensor]
# A power of two, so that it rounds nothing; half of what float16 has room for, because a difference
# of two probabilities may be rounded beyond 1.
_RANGE = 2.0**15
HALF_RANGE = tl.constexpr(_RANGE)


def is_shared_later(student: Tensor, needs_grad: bool) -> bool:
    """Whether the gradient is saved without its share."""
    return needs_grad and student.dtype == torch.float16


def share_of_backward(temp_student: Tensor, count: float | Tensor, later: bool) -> Tensor:
    """Return what a gradient saved without its share is to be multiplied by, or an empty tensor.

    Args:
        temp_student: The student's temperature, 0-dim.
        count: What the losses' sum is divided by.
        later: Whether it was saved so.

    Returns:
        1 / (2^15 temp count), 0-dim, made on the device, or an empty tensor.
    """
    return 1 / (temp_student * count * _RANGE) if later else temp_student.new_empty(0)


def empty_outputs(student: Tensor, needs_grad: bool) -> Outputs:
    """Return tensors of the right shapes and dtypes, not filled."""
    dtype = compute_dtype(student.dtype)
    grad = student.new_empty(student.shape if needs_grad else (0,))
    center_sum = student.new_empty(student.shape[-1], dtype=dtype)
    share = student.new_empty(() if is_shared_later(student, needs_grad) else (0,), dtype=dtype)
    return student.new_empty((), dtype=dtype), center_sum, grad, share


def check_temperatures(**temps: float | Tensor) -> None:
    """Raise ValueError unless these temperatures are finite, above zero and constants."""
    fixes = {
        "temp_student": "detach it, or divide the student by it and pass 1.0",
        "temp_target": "detach it: the targets are constants",
    }
    for argument, temp in temps.items():
        check_positive(argument, temp)
        if isinstance(temp, Tensor) and temp.requires_grad and torch.is_grad_enabled():
            what = "requires a gradient, which is not returned"
            raise bad_value(argument, what, fixes[argument])


def check_rows(
    student: Tensor, name: str, targets: Tensor, index: Tensor | None, weights: Tensor | None
) -> None:
    """Check the student's rows, their targets (the argument `name`), index and weights."""
    if student.ndim != 2:
        raise bad_value("student", tuple(student.shape), "expected (R, D); flatten leading axes")
    rows, width = student.shape
    if width == 0:
        raise bad_value("student", (rows, 0), "expected (R, D) with D at least 1")
    if targets.ndim != 2 or targets.shape[1] != width:
        raise bad_value(name, tuple(targets.shape), f"expected (rows, D = {width})")
    check_float("student", student)
    of_targets = (targets, tuple(targets.shape), "(any, D)")
    if index is None:
        of_targets = (targets, (rows, width), f"(R, D) without {name}_index")
    others = {name: of_targets}
    if weights is not None:
        others["row_weights"] = (weights, (rows,), "(R,)")
    check_tensors(student.device, others)
    if index is not None:
        check_shape(f"{name}_index", index, (rows,), "(R,)")
        check_same_device(student.device, **{f"{name}_index": index})
        check_ids(f"{name}_index", index, targets.shape[0])


def mean_of_rows(loss_R: Tensor, row_weights_R: Tensor | None) -> Tensor:
    """Return the mean of the rows' losses, by weights where there are any."""
    if row_weights_R is None:
        return loss_R.mean()
    weights = row_weights_R.to(loss_R.dtype)
    return (weights * loss_R).sum() / weights.sum()


def loss_of_no_rows(student: Tensor) -> Tensor:
    """Return a loss of 0, whose gradient is as empty as the student."""
    return student.sum(dtype=compute_dtype(student.dtype))


def on_device(temps: tuple[float | Tensor, ...], student: Tensor) -> list[Tensor]:
    """Return the temperatures as tensors beside the student."""
    return [device_scalar(temp, student) for temp in temps]


def save_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep the gradient and its share, the only ones of the outputs that the backward reads."""
    _, center_sum, grad, share = output
    ctx.mark_non_differentiable(center_sum, grad, share)
    # Zeros for the outputs without a gradient would be as large as the student.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad, share)
