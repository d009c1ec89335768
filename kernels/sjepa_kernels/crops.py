"""DINO's loss over 2-D crops: every student crop against every teacher crop but its own.

Shapes: S student crops, T teacher crops, B images (or clips) a crop, K prototypes.
"""

import torch
from torch import Tensor

from sjepa_kernels._checks import bad_value
from sjepa_kernels.centered_ce import centered_softmax_cross_entropy


def centered_crop_cross_entropy(
    student_SBK: Tensor,
    teacher_TBK: Tensor,
    center_K: Tensor,
    *,
    temp_student: float | Tensor = 0.1,
    temp_target: float | Tensor = 0.04,
    skip_same: bool = True,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Mean centred cross-entropy over pairs of crops, and the batch sum of the teacher.

    loss = mean over pairs (s, t), s != t, and over b of
    -sum_k softmax((teacher[t, b] - c) / temp_target) log softmax(student[s, b] / temp_student):
    the DINO loss, in which the T global crops come first among the S student crops. No pair is
    materialised: each student row is read, and its gradient written, once for each teacher crop.

    Args:
        student_SBK: Student logits, global crops first.
        teacher_TBK: Teacher logits of the global crops; not differentiated.
        center_K: Centre c, subtracted as it is now; see `update_center_`.
        temp_student: A float or a 0-dim tensor above zero.
        temp_target: A float or a 0-dim tensor above zero.
        skip_same: Whether crop t of the teacher skips crop t of the student.
        impl: "auto", "triton", "cpu" or "torch".

    Returns:
        The loss, 0-dim, and the sum over all T B teacher rows (K,), for the centre.

    Raises:
        TypeError: A dtype is not usable.
        ValueError: A shape, device, temperature or `impl` is not usable, or no pair is left.
    """
    for name, crops in (("student", student_SBK), ("teacher", teacher_TBK)):
        if crops.ndim != 3 or crops.shape[0] == 0 or crops.shape[1] == 0:
            raise bad_value(name, tuple(crops.shape), "expected (crops, batch, K), none of them 0")
    seen, batch, width = student_SBK.shape
    targets = teacher_TBK.shape[0]
    if teacher_TBK.shape[1:] != (batch, width):
        raise bad_value(
            "teacher", tuple(teacher_TBK.shape), f"expected (T, B, K) = (T, {batch}, {width})"
        )
    if skip_same and seen == targets == 1:
        raise bad_value("student", "one crop, the teacher's own", "pass more, or skip_same=False")
    device = student_SBK.device
    rows = student_SBK.reshape(seen * batch, width)
    crop = torch.arange(seen, device=device).repeat_interleave(batch)
    image = torch.arange(batch, device=device).repeat(seen)
    loss = torch.zeros((), device=device)
    center_sum = torch.zeros((), device=device)
    pairs = 0
    for target in range(targets):
        paired = seen - (skip_same and target < seen)
        if paired == 0:
            center_sum = center_sum + teacher_TBK[target].detach().sum(dim=0)
            continue
        weights = (crop != target).to(torch.float32) if skip_same else None
        mean, total = centered_softmax_cross_entropy(
            rows,
            teacher_TBK[target],
            center_K,
            temp_student=temp_student,
            temp_target=temp_target,
            teacher_index_R=image,
            row_weights_R=weights,
            impl=impl,
        )
        loss = loss + paired * mean
        # Every student crop has read each teacher row once.
        center_sum = center_sum + total / seen
        pairs += paired
    return loss / pairs, center_sum
