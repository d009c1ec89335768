# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy between probabilities that are given and a student softmax.

The kernels are those of `centered_softmax_cross_entropy`, without a center.

Shapes: R rows, D features.
"""

import torch
from torch import Tensor

from sjepa_kernels._dispatch import choose
from sjepa_kernels._triton import compute_dtype, device_scalar
from sjepa_kernels.losses.centered_ce import loss_of_rows
from sjepa_kernels.losses.cpu import has_cpu_code
from sjepa_kernels.losses.shared import (
    check_rows,
    check_temperatures,
    loss_of_no_rows,
    mean_of_rows,
)


def soft_ce_ref(
    student_RD: Tensor,
    probabilities: Tensor,
    temp_student: float | Tensor,
    probabilities_index_R: Tensor | None,
    row_weights_R: Tensor | None,
) -> Tensor:
    """Plain PyTorch form of `soft_cross_entropy`."""
    dtype, rows = compute_dtype(student_RD.dtype), probabilities
    if probabilities_index_R is not None:
        rows = rows.index_select(0, probabilities_index_R)
    log_p_RD = torch.log_softmax(student_RD.to(dtype) / temp_student, dim=-1)
    return mean_of_rows(-(rows.to(dtype) * log_p_RD).sum(dim=-1), row_weights_R)


def soft_cross_entropy(
    student_RD: Tensor,
    probabilities: Tensor,
    *,
    temp_student: float | Tensor = 0.1,
    probabilities_index_R: Tensor | None = None,
    row_weights_R: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Cross-entropy of a student to the probabilities of a teacher, or to soft labels.

    loss = -sum_r w_r sum_d p[r, d] log softmax(s[r] / temp_student)[d] / sum_r w_r, with w = 1 by
    default. Arithmetic is float32 (float64 for a float64 student). The gradient goes to the student
    alone and is made in the forward: w_r (P_r softmax(s[r] / temp) - p[r]) / (temp sum w), with P_r
    the sum of row r. So rows need not sum to 1, be it by rounding, be it because a row counts P_r
    times; they are not normalised. On a GPU a float16 gradient needs rows of numbers that are not
    negative with a sum below 2, else infinity may be among its numbers: weigh rows by
    `row_weights_R` instead.

    Where the probabilities are a softmax of logits less a center, `centered_softmax_cross_entropy`
    takes the logits, and nothing of the size of the probabilities is written or read. So it is with
    Sinkhorn-Knopp: `sinkhorn_center`.

    Args:
        student_RD: Student features before the softmax.
        probabilities: p, of any float dtype, (R, D), or (any, D) with `probabilities_index_R`.
        temp_student: A float or a 0-dim tensor above zero; a constant.
        probabilities_index_R: int32 or int64 row of `probabilities` for each row of the student.
        row_weights_R: Weight of each row; constants for the gradient. They are not read: where
            their sum is 0 the loss is not finite.
        impl: "auto", "triton", "cpu" or "torch".

    Returns:
        The loss, 0-dim, float32 (float64 for a float64 student); 0 of no rows.

    Raises:
        TypeError: A dtype is not usable.
        ValueError: A shape, device, index, temperature or `impl` is not usable, D is 0, or the
            temperature requires a gradient.
    """
    check_rows(student_RD, "probabilities", probabilities, probabilities_index_R, row_weights_R)
    check_temperatures(temp_student=temp_student)
    if row_weights_R is not None:
        row_weights_R = row_weights_R.detach()
    chosen = choose(impl, student_RD.device, cpu=has_cpu_code(student_RD))
    if student_RD.shape[0] == 0:
        return loss_of_no_rows(student_RD)
    given, rows = probabilities.detach(), (probabilities_index_R, row_weights_R)
    if chosen == "torch":
        return soft_ce_ref(student_RD, given, temp_student, *rows)
    temp = device_scalar(temp_student, student_RD)
    return loss_of_rows(student_RD, given, None, temp, None, *rows, chosen)[0]
