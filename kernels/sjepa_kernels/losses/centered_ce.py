# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy between a centered, sharpened teacher softmax and a student softmax.

The kernels and the registered op are those of `soft_cross_entropy` too: without a center and its
temperature the teacher holds probabilities, which are taken as they are.

Shapes: R rows, D features.
"""

from typing import Any

import torch
from torch import Tensor

from sjepa_kernels._checks import check_tensors
from sjepa_kernels._dispatch import choose
from sjepa_kernels._library import Op
from sjepa_kernels._triton import TL_DTYPES, cdiv, compute_dtype, row_block, tl, triton
from sjepa_kernels.losses.cpu import centered_ce_cpu, has_cpu_code
from sjepa_kernels.losses.scale import scaled
from sjepa_kernels.losses.shared import (
    HALF_RANGE,
    UNFUSED,
    Outputs,
    check_rows,
    check_temperatures,
    empty_outputs,
    is_shared_later,
    loss_of_no_rows,
    mean_of_rows,
    on_device,
    save_gradient,
    share_of_backward,
)

# Rows up to this width stay in registers; wider ones are read twice, with online row statistics.
_WIDEST_ROW = 4096


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
    return mean_of_rows(loss_R, row_weights_R), rows.sum(dim=0)


@triton.jit
def _teacher_rows(index, r, in_r, teacher_rows, HAS_INDEX: tl.constexpr):
    """Row of the teacher for each row r, and whether it exists."""
    row = r.to(tl.int64)
    if HAS_INDEX:
        row = tl.load(index + r, mask=in_r, other=0).to(tl.int64)
    return row, (row >= 0) & (row < teacher_rows)


@triton.jit
def _ce_rows_kernel(
    student, teacher, center, index, weights, temp_student, temp_target, total,
    grad, loss_part, center_part, R, teacher_rows, D,
    HAS_INDEX: tl.constexpr, HAS_WEIGHTS: tl.constexpr, NEEDS_GRAD: tl.constexpr,
    COMPUTE: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Whole rows in registers: one read of student and teacher, one write of the gradient."""
    program = tl.program_id(0)
    d = tl.arange(0, BD)
    in_d = (d < D)[None, :]
    if center is not None:
        c = tl.load(center + d, mask=d < D, other=0.0).to(COMPUTE)[None, :]
        scale_t = 1.0 / tl.load(temp_target)
    scale_s = 1.0 / tl.load(temp_student)
    if grad.dtype.element_ty == tl.float16:
        share = HALF_RANGE
    else:
        share = scale_s / (tl.load(total) if HAS_WEIGHTS else R)
    center_sum = tl.zeros((BR, BD), COMPUTE)
    loss = tl.zeros((BR,), COMPUTE)
    for tile in range(program, tl.cdiv(R, BR), tl.num_programs(0)):
        r = tile * BR + tl.arange(0, BR)
        in_r = r < R
        row, exists = _teacher_rows(index, r, in_r, teacher_rows, HAS_INDEX)
        inside = in_r[:, None] & in_d
        place = r.to(tl.int64)[:, None] * D + d[None, :]
        s = tl.load(student + place, mask=inside, other=0.0).to(COMPUTE)
        known = inside & exists[:, None]
        t = tl.load(teacher + row[:, None] * D + d[None, :], mask=known, other=0.0).to(COMPUTE)
        t = tl.where(inside & (exists[:, None] == 0), float("nan"), t)
        if center is not None:
            center_sum += t
        # Scaled behind the subtraction: the largest is 0 then, whatever the compiler fuses.
        below = tl.max(tl.where(in_d, s, float("-inf")), axis=1)[:, None] - s
        below = tl.where(in_d, below * scale_s, 0.0)
        y = t
        if center is not None:
            y = tl.where(in_d, t - c, float("-inf"))
        x_exp = tl.where(in_d, tl.exp(-below), 0.0)
        if center is not None:
            y = tl.exp((y - tl.max(y, axis=1)[:, None]) * scale_t)
        x_sum = tl.sum(x_exp, axis=1)
        y_sum = tl.sum(y, axis=1)
        # Both terms of the loss are non-negative, so nothing cancels.
        gap = tl.sum(y * below, axis=1)
        if center is not None:
            row_loss = tl.log(x_sum) + gap / y_sum
        else:
            row_loss = y_sum * tl.log(x_sum) + gap
        if HAS_WEIGHTS:
            w = tl.load(weights + r, mask=in_r, other=0.0).to(COMPUTE)
            row_loss = row_loss * w
        loss += tl.where(in_r, row_loss, 0.0)
        if NEEDS_GRAD:
            if center is not None:
                ds = x_exp / x_sum[:, None] - y / y_sum[:, None]
            else:
                ds = x_exp * (y_sum / x_sum)[:, None] - y
            if HAS_WEIGHTS:
                ds = ds * w[:, None]
            tl.store(grad + place, ds * share, mask=inside)
    tl.store(loss_part + program, tl.sum(loss, axis=0))
    if center is not None:
        to = center_part + program.to(tl.int64) * D + d
        tl.store(to, tl.sum(center_sum, axis=0), mask=d < D)


@triton.jit
def _ce_stats_kernel(
    student, teacher, center, index, weights, temp_student, temp_target,
    stats, R, teacher_rows, D,
    HAS_INDEX: tl.constexpr, HAS_WEIGHTS: tl.constexpr, COMPUTE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Wide rows, first read: maximum and sum of both sides and the row's loss, online."""
    r = tl.program_id(0).to(tl.int64)
    row, exists = _teacher_rows(index, r, r >= 0, teacher_rows, HAS_INDEX)
    row = tl.where(exists, row, 0)
    scale_s = 1.0 / tl.load(temp_student)
    if center is not None:
        scale_t = 1.0 / tl.load(temp_target)
    x_max = tl.full((), float("-inf"), COMPUTE)
    y_max = tl.full((), float("-inf"), COMPUTE)
    x_sum = tl.full((), 0.0, COMPUTE)
    y_sum = tl.full((), 0.0, COMPUTE)
    gap = tl.full((), 0.0, COMPUTE)
    for start in range(0, D, BD):
        d = start + tl.arange(0, BD)
        in_d = d < D
        s = tl.load(student + r * D + d, mask=in_d, other=0.0).to(COMPUTE)
        t = tl.load(teacher + row * D + d, mask=in_d & exists, other=0.0).to(COMPUTE)
        y_exp = t
        keep = 1.0
        if center is not None:
            c = tl.load(center + d, mask=in_d, other=0.0).to(COMPUTE)
            y = tl.where(in_d, (t - c) * scale_t, float("-inf"))
            y_new = tl.maximum(y_max, tl.max(y, axis=0))
            y_exp = tl.exp(y - y_new)
            keep = tl.exp(y_max - y_new)
            y_max = y_new
        x = s * scale_s
        x_new = tl.maximum(x_max, tl.max(tl.where(in_d, x, float("-inf")), axis=0))
        x_exp = tl.where(in_d, tl.exp(x - x_new), 0.0)
        shift = tl.where(start > 0, x_new - x_max, 0.0)
        gap = (gap + y_sum * shift) * keep
        gap += tl.sum(y_exp * tl.where(in_d, x_new - x, 0.0), axis=0)
        x_sum = x_sum * tl.exp(x_max - x_new) + tl.sum(x_exp, axis=0)
        y_sum = y_sum * keep + tl.sum(y_exp, axis=0)
        x_max = x_new
    if center is not None:
        row_loss = tl.log(x_sum) + gap / y_sum
        share = 1.0 / x_sum
        tl.store(stats + 2 * R + r, y_max)
        tl.store(stats + 3 * R + r, 1.0 / y_sum)
    else:
        row_loss = y_sum * tl.log(x_sum) + gap
        share = y_sum / x_sum
    row_loss = tl.where(exists, row_loss, float("nan"))
    if HAS_WEIGHTS:
        row_loss = row_loss * tl.load(weights + r).to(COMPUTE)
    tl.store(stats + r, x_max)
    tl.store(stats + R + r, share)
    tl.store(stats + 4 * R + r, row_loss)


@triton.jit
def _ce_columns_kernel(
    student, teacher, center, index, weights, temp_student, temp_target, total,
    stats, grad, center_part, R, teacher_rows, D, chunk,
    HAS_INDEX: tl.constexpr, HAS_WEIGHTS: tl.constexpr, NEEDS_GRAD: tl.constexpr,
    COMPUTE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Wide rows, second read, a tile of columns each: the gradient and the center's column sums."""
    part = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    in_d = d < D
    if center is not None:
        c = tl.load(center + d, mask=in_d, other=0.0).to(COMPUTE)
        scale_t = 1.0 / tl.load(temp_target)
    scale_s = 1.0 / tl.load(temp_student)
    if grad.dtype.element_ty == tl.float16:
        share = HALF_RANGE
    else:
        share = scale_s / (tl.load(total) if HAS_WEIGHTS else R)
    center_sum = tl.zeros((BD,), COMPUTE)
    first = part * chunk
    for step in range(0, tl.minimum(chunk, R - first)):
        r = first + step
        row, exists = _teacher_rows(index, r, r >= 0, teacher_rows, HAS_INDEX)
        row = tl.where(exists, row, 0)
        t = tl.load(teacher + row * D + d, mask=in_d & exists, other=float("nan")).to(COMPUTE)
        if center is not None:
            center_sum += t
        if NEEDS_GRAD:
            s = tl.load(student + r * D + d, mask=in_d, other=0.0).to(COMPUTE)
            p_s = tl.exp(s * scale_s - tl.load(stats + r)) * tl.load(stats + R + r)
            p_t = t
            if center is not None:
                y = (t - c) * scale_t - tl.load(stats + 2 * R + r)
                p_t = tl.exp(y) * tl.load(stats + 3 * R + r)
            ds = (p_s - p_t) * share
            if HAS_WEIGHTS:
                ds = ds * tl.load(weights + r).to(COMPUTE)
            tl.store(grad + r * D + d, ds, mask=in_d)
    if center is not None:
        tl.store(center_part + part * D + d, center_sum, mask=in_d)


def _launch(*args: Any) -> Outputs:
    """Run the kernels on the arguments of `_body` but its last."""
    *tensors, center, temp_student, temp_target, index, weights, needs_grad = args
    student, teacher = (x.contiguous() for x in tensors)
    if center is not None:
        center = center.contiguous()
    rows, width = student.shape
    dtype = compute_dtype(student.dtype)
    later = is_shared_later(student, needs_grad)
    if later and weights is not None:
        # At most 1, as what is saved of a float16 gradient may be; a common factor changes nothing.
        weights = weights.to(dtype)
        weights = weights / weights.abs().amax()
    # Without weights the sum is the number of rows, which the kernels know.
    total = rows if weights is None else weights.to(dtype).sum()
    # Pointers that the constexpr flags switch off still need a tensor to stand for them.
    index_arg = student if index is None else index.contiguous()
    weights_arg, total_arg = (student,) * 2 if weights is None else (weights.contiguous(), total)
    inputs = student, teacher, center, index_arg, weights_arg, temp_student, temp_target
    grad = torch.empty_like(student) if needs_grad else student.new_empty(0)
    share = share_of_backward(temp_student, total, later)
    flags: dict[str, Any] = {
        "HAS_INDEX": index is not None,
        "HAS_WEIGHTS": weights is not None,
        "COMPUTE": TL_DTYPES[dtype],
    }
    if width <= _WIDEST_ROW:
        columns = row_block(width)
        tile = max(1, 2048 // columns)
        # Enough programs to fill a large GPU; a function of the shape alone, so that the sums,
        # and with them the result, repeat bitwise.
        programs = min(cdiv(rows, tile), 1056)
        loss_part = student.new_empty(programs, dtype=dtype)
        center_part = _empty_center_parts(student, programs, center)
        _ce_rows_kernel[(programs,)](
            *inputs, total_arg, grad, loss_part, center_part, rows, teacher.shape[0], width,
            NEEDS_GRAD=needs_grad, BR=tile, BD=columns, **flags,
            num_warps=8 if columns == _WIDEST_ROW else 4,
        )  # fmt: skip
        return loss_part.sum() / total, center_part.sum(0), grad, share
    stats = student.new_empty((5, rows), dtype=dtype)
    _ce_stats_kernel[(rows,)](
        *inputs, stats, rows, teacher.shape[0], width, BD=2048, **flags, num_warps=8, **UNFUSED,
    )  # fmt: skip
    tiles = cdiv(width, 1024)
    chunk = cdiv(rows, min(rows, max(1, 2112 // tiles)))
    parts = cdiv(rows, chunk)
    center_part = _empty_center_parts(student, parts, center)
    if needs_grad or center is not None:
        _ce_columns_kernel[(parts, tiles)](
            *inputs, total_arg, stats, grad, center_part, rows, teacher.shape[0], width, chunk,
            NEEDS_GRAD=needs_grad, BD=1024, **flags, **UNFUSED,
        )  # fmt: skip
    return stats[4].sum() / total, center_part.sum(0), grad, share


def _empty_center_parts(student: Tensor, parts: int, center: Tensor | None) -> Tensor:
    width = student.shape[1] if center is not None else 0
    return student.new_empty((parts, width), dtype=compute_dtype(student.dtype))


def _body(
    student: Tensor, teacher: Tensor, center: Tensor | None, temp_student: Tensor,
    temp_target: Tensor | None, index: Tensor | None, weights: Tensor | None, needs_grad: bool,
    impl: str,
) -> Outputs:  # fmt: skip
    """Return the loss, the column sums of the teacher, and the gradient to save with its share.

    Without a center there are no column sums.
    """
    run = centered_ce_cpu if impl == "cpu" else _launch
    return run(student, teacher, center, temp_student, temp_target, index, weights, needs_grad)


def _fake(*inputs: Any) -> Outputs:
    student, _, center, *_, needs_grad, _ = inputs
    loss, center_sum, grad, share = empty_outputs(student, needs_grad)
    return loss, center_sum if center is not None else center_sum.new_empty(0), grad, share


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    save_gradient(ctx, inputs, output)
    ctx.impl = inputs[-1]


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    grad, share = ctx.saved_tensors
    return scaled(grad, share, grad_loss, ctx.impl), *[None] * 8


_op = Op("centered_softmax_cross_entropy", _body, _fake, setup=_setup, backward=_backward)


def loss_of_rows(
    student: Tensor, teacher: Tensor, center: Tensor | None, temp_student: Tensor,
    temp_target: Tensor | None, index: Tensor | None, weights: Tensor | None, impl: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the op by the kernels or in C++: the loss and the column sums of the teacher."""
    if impl == "cpu":
        # The C++ reads float32 and makes a float32 gradient. Cast out here, a half-precision one is
        # rounded behind its multiplication by that of the loss, as eager's is.
        student = student.float()
    needs_grad = torch.is_grad_enabled() and student.requires_grad
    temps = temp_student, temp_target
    of_op = _op(student, teacher, center, *temps, index, weights, needs_grad, impl)
    return of_op[0], of_op[1]


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
    """Loss of S-JEPA and DINO, and the sum of the teacher rows it used, for the center.

    p_t = softmax((t - c) / temp_target), p_s = softmax(s / temp_student),
    loss = sum_r w_r (-sum_d p_t log p_s) / sum_r w_r, with w = 1 by default.
    Arithmetic is float32 (float64 for a float64 student). The gradient goes to the student alone.

    iBOT and DINOv2 patches: rows are the masked patches and w_r = 1 / (masked patches of r's
    image). Their mean over all images, also those without a mask, is this loss times
    w.sum() / images. A batch without a masked patch, R = 0, has the loss 0, the gradient 0 and the
    center sum 0, as it has there. DINO's pairs of crops: `centered_crop_cross_entropy`.

    Args:
        student_RD: Student features before the softmax.
        teacher: Teacher features, (R, D), or (any, D) with `teacher_index_R`.
        center_D: Center c, subtracted as it is now; see `update_center_`.
        temp_student: A float or a 0-dim tensor above zero (0.1 in S-JEPA); a constant.
        temp_target: A float or a 0-dim tensor above zero (0.06 in S-JEPA); a constant.
        teacher_index_R: int32 or int64 row of `teacher` for each row of the student, so that no
            gathered copy is needed.
        row_weights_R: Weight of each row (iBOT's mask weights); constants for the gradient. They
            are not read: where their sum is 0 the loss is not finite.
        impl: "auto", "triton", "cpu" or "torch".

    Returns:
        The loss, 0-dim, and the sum over the R used teacher rows (D,), both float32 (float64 for
        a float64 student).

    Raises:
        TypeError: A dtype is not usable.
        ValueError: A shape, device, index, temperature or `impl` is not usable, D is 0, or a
            temperature requires a gradient.
    """
    check_rows(student_RD, "teacher", teacher, teacher_index_R, row_weights_R)
    check_tensors(student_RD.device, {"center": (center_D, (student_RD.shape[1],), "(D,)")})
    check_temperatures(temp_student=temp_student, temp_target=temp_target)
    if row_weights_R is not None:
        row_weights_R = row_weights_R.detach()
    tensors = student_RD, teacher.detach(), center_D.detach()
    chosen = choose(impl, student_RD.device, cpu=has_cpu_code(student_RD))
    if student_RD.shape[0] == 0:
        loss = loss_of_no_rows(student_RD)
        return loss, loss.new_zeros(student_RD.shape[1])
    temps, rows = (temp_student, temp_target), (teacher_index_R, row_weights_R)
    if chosen == "torch":
        return centered_ce_ref(*tensors, *temps, *rows)
    temp_s, temp_t = on_device(temps, student_RD)
    return loss_of_rows(*tensors, temp_s, temp_t, *rows, chosen)
