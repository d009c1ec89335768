# SPDX-License-Identifier: Apache-2.0
"""DINO's loss over 2-D crops: every student crop against every teacher crop but its own.

Shapes: S student crops, T teacher crops, B images (or clips) per crop, K prototypes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sjepa_kernels._checks import bad_value, check_float, check_shape, check_tensors
from sjepa_kernels._dispatch import choose
from sjepa_kernels._library import Op
from sjepa_kernels._triton import (
    TL_DTYPES,
    cdiv,
    compute_dtype,
    next_power_of_two,
    row_block,
    tl,
    triton,
)
from sjepa_kernels.losses.centered_ce import centered_softmax_cross_entropy
from sjepa_kernels.losses.cpu import has_cpu_code
from sjepa_kernels.losses.row_stats import row_stats_kernel
from sjepa_kernels.losses.scale import scaled
from sjepa_kernels.losses.shared import (
    HALF_RANGE,
    UNFUSED,
    Outputs,
    check_temperatures,
    empty_outputs,
    is_shared_later,
    on_device,
    save_gradient,
    share_of_backward,
)

# One tensor (crops, batch, K), or one (batch, K) for each crop.
Crops = Tensor | Sequence[Tensor]


def stacked_crops(name: str, crops: Crops) -> Tensor:
    """Return the crops as one tensor, which of a list is a copy."""
    if isinstance(crops, Tensor):
        return crops
    if not crops:
        raise bad_value(name, "no crops", "pass at least one")
    for place, crop in enumerate(crops):
        check_shape(f"{name}[{place}]", crop, tuple(crops[0].shape), f"{name}[0].shape")
    return torch.stack(tuple(crops))


def centered_crop_ce_ref(
    student_SBK: Tensor,
    teacher_TBK: Tensor,
    center_K: Tensor,
    temp_student: float | Tensor,
    temp_target: float | Tensor,
    skip_same: bool,
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch form of `centered_crop_cross_entropy`."""
    dtype = compute_dtype(student_SBK.dtype)
    teacher = teacher_TBK.to(dtype)
    target_TBK = torch.softmax((teacher - center_K.to(dtype)) / temp_target, dim=-1)
    log_p_SBK = torch.log_softmax(student_SBK.to(dtype) / temp_student, dim=-1)
    terms = [
        -(target_BK * log_p_BK).sum(dim=-1).mean()
        for t, target_BK in enumerate(target_TBK)
        for s, log_p_BK in enumerate(log_p_SBK)
        if not (skip_same and s == t)
    ]
    return torch.stack(terms).mean(), teacher.sum(dim=(0, 1))


@triton.jit
def _crop_columns_kernel(
    student, teacher, center, temp_student, temp_target, stats_s, stats_t,
    grad, gap_part, center_part, S, T, B, D, chunk, terms,
    SKIP: tl.constexpr, NEEDS_GRAD: tl.constexpr,
    COMPUTE: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Some samples and a tile of columns each.

    The teachers' probabilities of a sample stay in registers while its students pass, so that
    every element of either side is read once, however many pairs it is in.
    """
    part = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    d = tile * BD + tl.arange(0, BD)
    in_d = d < D
    t = tl.arange(0, BT)
    in_t = t < T
    c = tl.load(center + d, mask=in_d, other=0.0).to(COMPUTE)[None, :]
    scale_s = 1.0 / tl.load(temp_student)
    scale_t = 1.0 / tl.load(temp_target)
    # There are at most BT targets, a power of two, in one difference.
    share = HALF_RANGE / BT if grad.dtype.element_ty == tl.float16 else scale_s / terms
    center_sum = tl.zeros((BD,), COMPUTE)
    gap = tl.zeros((BD,), COMPUTE)
    first = part * chunk
    for step in range(0, tl.minimum(chunk, B - first)):
        b = first + step
        row_t = t.to(tl.int64) * B + b
        inside = in_t[:, None] & in_d[None, :]
        y = tl.load(teacher + row_t[:, None] * D + d[None, :], mask=inside, other=0.0).to(COMPUTE)
        center_sum += tl.sum(y, axis=0)
        y_max = tl.load(stats_t + row_t, mask=in_t, other=0.0)[:, None]
        y_sum = tl.load(stats_t + T * B + row_t, mask=in_t, other=1.0)[:, None]
        p_t = tl.where(inside, tl.exp((y - c) * scale_t - y_max) / y_sum, 0.0)
        for s in range(0, S):
            row = s * B + b
            target = p_t
            count = T
            if SKIP:
                target = tl.where((t == s)[:, None], 0.0, p_t)
                count = T - (s < T).to(tl.int32)
            target = tl.sum(target, axis=0)
            x_max = tl.load(stats_s + row)
            x = tl.load(student + row * D + d, mask=in_d, other=0.0).to(COMPUTE) * scale_s
            below = tl.where(in_d, x_max - x, 0.0)
            gap += target * below
            if NEEDS_GRAD:
                x_sum = tl.load(stats_s + S * B + row)
                ds = count * (tl.exp(-below) / x_sum) - target
                tl.store(grad + row * D + d, ds * share, mask=in_d)
    tl.store(center_part + part * D + d, center_sum, mask=in_d)
    tl.store(gap_part + part * tl.num_programs(1) + tile, tl.sum(gap, axis=0))


def _pairs(students: int, teachers: int, skip_same: bool) -> int:
    return students * teachers - (min(students, teachers) if skip_same else 0)


def _launch(
    student: Tensor, teacher: Tensor, center: Tensor, temp_student: Tensor, temp_target: Tensor,
    skip_same: bool, needs_grad: bool,
) -> Outputs:  # fmt: skip
    """Return the loss, the column sums of the teachers, and the gradient to save with its share."""
    (crops, batch, width), teachers = student.shape, teacher.shape[0]
    dtype = compute_dtype(student.dtype)
    compute = TL_DTYPES[dtype]
    student, teacher, center = student.contiguous(), teacher.contiguous(), center.contiguous()
    stats_s = student.new_empty((2, crops, batch), dtype=dtype)
    stats_t = student.new_empty((2, teachers, batch), dtype=dtype)
    columns = row_block(width)
    for x, temp, stats, has_center in (
        (student, temp_student, stats_s, False),
        (teacher, temp_target, stats_t, True),
    ):
        rows = x.shape[0] * batch
        row_stats_kernel[(rows,)](
            x, center, temp, stats, rows, width,
            HAS_CENTER=has_center, COMPUTE=compute, BD=min(columns, 4096),
            num_warps=8 if columns >= 4096 else 4, **UNFUSED,
        )  # fmt: skip
    grad = torch.empty_like(student) if needs_grad else student.new_empty(0)
    held = next_power_of_two(teachers)
    block = min(columns, max(2048 // held, 128))
    tiles = cdiv(width, block)
    # Enough programs to fill a large GPU; the split follows from shapes alone, so sums repeat.
    chunk = cdiv(batch, min(batch, max(1, 2112 // tiles)))
    parts = cdiv(batch, chunk)
    gap_part = student.new_empty((parts, tiles), dtype=dtype)
    center_part = student.new_empty((parts, width), dtype=dtype)
    terms = _pairs(crops, teachers, skip_same) * batch
    _crop_columns_kernel[(parts, tiles)](
        student, teacher, center, temp_student, temp_target, stats_s, stats_t,
        grad, gap_part, center_part, crops, teachers, batch, width, chunk, terms,
        SKIP=skip_same, NEEDS_GRAD=needs_grad, COMPUTE=compute, BT=held, BD=block, **UNFUSED,
    )  # fmt: skip
    # Both parts of the loss are non-negative, so nothing cancels.
    log_sum_S = stats_s[1].log().sum(dim=1)
    same = min(crops, teachers) if skip_same else 0
    logs = (teachers - 1) * log_sum_S[:same].sum() + teachers * log_sum_S[same:].sum()
    share = share_of_backward(temp_student, terms / held, is_shared_later(student, needs_grad))
    return (gap_part.sum() + logs) / terms, center_part.sum(0), grad, share


def _fake(*inputs: Any) -> Outputs:
    student, *_, needs_grad = inputs
    return empty_outputs(student, needs_grad)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    grad, share = ctx.saved_tensors
    return scaled(grad, share, grad_loss, "triton"), *[None] * 6


_op = Op("centered_crop_cross_entropy", _launch, _fake, setup=save_gradient, backward=_backward)


def centered_crop_cross_entropy(
    student_SBK: Crops,
    teacher_TBK: Crops,
    center_K: Tensor,
    *,
    temp_student: float | Tensor = 0.1,
    temp_target: float | Tensor = 0.04,
    skip_same: bool = True,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Loss of DINO over all pairs of crops, and the sum of the teacher rows, for the center.

    p_t = softmax((teacher[t] - c) / temp_target), p_s = softmax(student[s] / temp_student),
    loss = mean over pairs (t, s), t != s, and over b of -sum_k p_t[b, k] log p_s[b, k].
    Arithmetic is float32 (float64 for a float64 student). The gradient goes to the student alone;
    it is made in the forward. No pair is materialised.

    For iBOT's masked patches use `centered_softmax_cross_entropy` with `row_weights_R`.

    Args:
        student_SBK: Outputs of the student's head, the teacher's crops first and in its order: one
            tensor, or a sequence of S tensors (B, K), which is copied into one. A head's (S * B, K)
            output crop by crop, takes `.view(S, B, K)` and no copy.
        teacher_TBK: Outputs of the teacher's head for its T crops, as the student's.
        center_K: Center c, subtracted as it is now; see `update_center_` (the count is T * B).
        temp_student: A float or a 0-dim tensor above zero (0.1 in DINO); a constant.
        temp_target: A float or a 0-dim tensor above zero (0.04 in DINO, warmed up to 0.07); a
            constant.
        skip_same: Leave out the pairs s = t, which see the same crop.
        impl: "auto", "triton", "cpu" or "torch".

    Returns:
        The loss, 0-dim, and the sum over the T * B teacher rows (K,), both float32 (float64 for a
        float64 student).

    Raises:
        TypeError: A dtype is not usable.
        ValueError: A shape, device, temperature or `impl` is not usable, there are no pairs, or a
            temperature requires a gradient.
    """
    student_SBK = stacked_crops("student", student_SBK)
    teacher_TBK = stacked_crops("teacher", teacher_TBK)
    _check(student_SBK, teacher_TBK, center_K, skip_same)
    check_temperatures(temp_student=temp_student, temp_target=temp_target)
    args = student_SBK, teacher_TBK.detach(), center_K.detach()
    temps = temp_student, temp_target
    chosen = choose(impl, student_SBK.device, cpu=has_cpu_code(student_SBK))
    if chosen == "torch":
        return centered_crop_ce_ref(*args, *temps, skip_same)
    if chosen == "cpu":
        return _one_teacher_at_a_time(*args, *temps, skip_same)
    needs_grad = torch.is_grad_enabled() and student_SBK.requires_grad
    of_op = _op(*args, *on_device(temps, student_SBK), skip_same, needs_grad)
    return of_op[0], of_op[1]


def _one_teacher_at_a_time(
    student_SBK: Tensor, teacher_TBK: Tensor, center_K: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    """The C++ form: each student row is read, and its gradient written, once for each teacher.

    Of a half-precision student those gradients are float32 and their sum is rounded, once.
    """
    temp_student, temp_target, skip_same = options
    seen, batch = student_SBK.shape[:2]
    rows, device = student_SBK.flatten(0, 1).float(), student_SBK.device
    crop = torch.arange(seen, device=device).repeat_interleave(batch)
    image = torch.arange(batch, device=device).repeat(seen)
    loss = center_sum = torch.zeros((), device=device)
    for target, teacher_BK in enumerate(teacher_TBK):
        paired = seen - (skip_same and target < seen)
        if paired == 0:
            center_sum = center_sum + teacher_BK.float().sum(dim=0)
            continue
        given: dict[str, Any] = {"temp_student": temp_student, "temp_target": temp_target}
        given["row_weights_R"] = (crop != target).to(torch.float32) if skip_same else None
        mean, total = centered_softmax_cross_entropy(
            rows, teacher_BK, center_K, teacher_index_R=image, impl="cpu", **given
        )
        loss = loss + paired * mean
        # Every student crop has read each teacher row once.
        center_sum = center_sum + total / seen
    return loss / _pairs(seen, len(teacher_TBK), skip_same), center_sum


def _check(student: Tensor, teacher: Tensor, center: Tensor, skip_same: bool) -> None:
    for name, crops in (("student", student), ("teacher", teacher)):
        if crops.ndim != 3 or crops.numel() == 0:
            raise bad_value(name, tuple(crops.shape), "expected (crops, batch, K), none of them 0")
        check_float(name, crops)
    seen, batch, width = student.shape
    expected = (len(teacher), batch, width)
    if tuple(teacher.shape) != expected:
        fix = f"expected (T, B, K) = (T, {batch}, {width})"
        raise bad_value("teacher", tuple(teacher.shape), fix)
    others = {"teacher": (teacher, expected, "(T, B, K)"), "center": (center, (width,), "(K,)")}
    check_tensors(student.device, others)
    if _pairs(seen, len(teacher), skip_same) == 0:
        raise bad_value("student", "one crop, the teacher's own", "pass more, or skip_same=False")
