"""Cross-entropy between a centred, sharpened teacher softmax and a student softmax.

Shapes: R rows, D features.
"""

import torch
from torch import Tensor

from sjepa_kernels._checks import (
    bad_type,
    bad_value,
    check_float,
    check_ids,
    check_positive,
    check_same_device,
    check_shape,
)
from sjepa_kernels._dispatch import choose
from sjepa_kernels._triton import compute_dtype


def centered_ce_ref(
    student_RD: Tensor,
    teacher: Tensor,
    center_D: Tensor,
    temp_student: float | Tensor,
    temp_target: float | Tensor,
    teacher_index_R: Tensor | None,
    row_weights_R: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch form of `centered_softmax_cross_entropy`."""
    dtype = compute_dtype(student_RD.dtype)
    rows = teacher if teacher_index_R is None else teacher.index_select(0, teacher_index_R)
    rows = rows.to(dtype)
    target_RD = torch.softmax((rows - center_D.to(dtype)) / temp_target, dim=-1)
    log_p_RD = torch.log_softmax(student_RD.to(dtype) / temp_student, dim=-1)
    loss_R = -(target_RD * log_p_RD).sum(dim=-1)
    if row_weights_R is None:
        return loss_R.mean(), rows.sum(dim=0)
    weights = row_weights_R.to(dtype)
    return (weights * loss_R).sum() / weights.sum(), rows.sum(dim=0)


def centered_softmax_cross_entropy(
    student_RD: Tensor,
    teacher: Tensor,
    center_D: Tensor,
    *,
    temp_student: float | Tensor = 0.1,
    temp_target: float | Tensor = 0.06,
    teacher_index_R: Tensor | None = None,
    row_weights_R: Tensor | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Loss of S-JEPA and DINO, and the sum of the teacher rows it used, for the centre.

    p_t = softmax((t - c) / temp_target), p_s = softmax(s / temp_student),
    loss = sum_r w_r (-sum_d p_t log p_s) / sum_r w_r, with w = 1 by default.
    Arithmetic is float32 (float64 for a float64 student). The gradient goes to the student alone.

    Args:
        student_RD: Student features before the softmax.
        teacher: Teacher features, (R, D), or (any, D) with `teacher_index_R`.
        center_D: Centre c, subtracted as it is now; see `update_center_`.
        temp_student: A float or a 0-dim tensor above zero (0.1 in S-JEPA).
        temp_target: A float or a 0-dim tensor above zero (0.06 in S-JEPA).
        teacher_index_R: int32 or int64 row of `teacher` for each row of the student, so that no
            gathered copy is needed.
        row_weights_R: Weight of each row (iBOT's mask weights); constants for the gradient.
        impl: "auto", "triton", "cpu" or "torch".

    Returns:
        The loss, 0-dim, and the sum over the R used teacher rows (D,), both float32 (float64 for
        a float64 student).

    Raises:
        TypeError: A dtype is not usable.
        ValueError: A shape, device, index, temperature or `impl` is not usable, or there are no
            rows.
    """
    _check(student_RD, teacher, center_D, teacher_index_R, row_weights_R)
    check_positive("temp_student", temp_student)
    check_positive("temp_target", temp_target)
    teacher, center_D = teacher.detach(), center_D.detach()
    if row_weights_R is not None:
        row_weights_R = row_weights_R.detach()
    choose(impl, student_RD.device)
    return centered_ce_ref(
        student_RD, teacher, center_D, temp_student, temp_target, teacher_index_R, row_weights_R
    )


@torch.no_grad()
def update_center_(
    center_D: Tensor, center_sum_D: Tensor, count: int | Tensor, momentum: float | Tensor
) -> None:
    """Move the centre towards a batch mean, in place: c <- m c + (1 - m) sum / count.

    With several processes, all-reduce the sum and the count first.

    Args:
        center_D: The centre.
        center_sum_D: Sum of teacher rows, as `centered_softmax_cross_entropy` returns it.
        count: Number of rows in the sum.
        momentum: m in [0, 1] (0.9 in S-JEPA).

    Raises:
        ValueError: Shapes differ, the count is not positive, or the momentum is outside [0, 1].
    """
    check_shape("center_sum", center_sum_D, tuple(center_D.shape), "the centre's shape")
    if not isinstance(count, Tensor) and count <= 0:
        raise bad_value("count", count, "pass the number of rows in the sum, at least 1")
    if not isinstance(momentum, Tensor) and not 0 <= momentum <= 1:
        raise bad_value("momentum", momentum, "pass a number in [0, 1]")
    mean = (center_sum_D / count).to(center_D.dtype)
    weight = 1 - momentum
    if isinstance(weight, Tensor):
        weight = weight.to(center_D.dtype)
    center_D.lerp_(mean, weight)


def _check(
    student: Tensor,
    teacher: Tensor,
    center: Tensor,
    index: Tensor | None,
    weights: Tensor | None,
) -> None:
    if student.ndim != 2:
        raise bad_value("student", tuple(student.shape), "expected (R, D); flatten leading axes")
    rows, width = student.shape
    if rows == 0 or width == 0:
        raise bad_value("student", (rows, width), "a mean over nothing has no value; pass rows")
    if teacher.ndim != 2 or teacher.shape[1] != width:
        raise bad_value("teacher", tuple(teacher.shape), f"expected (rows, D = {width})")
    check_shape("center", center, (width,), "(D,)")
    for name, tensor in (("student", student), ("teacher", teacher), ("center", center)):
        check_float(name, tensor)
    check_same_device(student.device, teacher=teacher, center=center)
    if index is None:
        check_shape("teacher", teacher, (rows, width), "(R, D) without teacher_index")
    else:
        check_shape("teacher_index", index, (rows,), "(R,)")
        check_same_device(student.device, teacher_index=index)
        check_ids("teacher_index", index, teacher.shape[0])
    if weights is not None:
        check_shape("row_weights", weights, (rows,), "(R,)")
        check_same_device(student.device, row_weights=weights)
        if not weights.dtype.is_floating_point:
            raise bad_type("row_weights", weights.dtype, "pass a floating-point tensor")
