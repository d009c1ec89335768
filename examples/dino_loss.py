"""The loss of DINO (Caron et al. 2021) on two global and any number of local crops.

Every pair of a teacher's crop and another crop of the student counts once. No probabilities are
stored, and on a GPU each crop is read once, however many pairs it is in.

Shapes: B images, D outputs of the head.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sjepa_kernels import centered_crop_cross_entropy, update_center_


class DinoLoss(nn.Module):
    """mean over (t, s != t) and images of -sum_d softmax((t - c) / temp_t) log softmax(s / temp_s).

    Args:
        width: D.
        temp_student: Temperature of the student.
        center_momentum: m in c <- m c + (1 - m) mean of the teacher's rows, after each loss.
    """

    center: Tensor

    def __init__(self, width: int, temp_student: float = 0.1, center_momentum: float = 0.9) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(width))
        self.temp_student = temp_student
        self.center_momentum = center_momentum

    def forward(
        self, student: list[Tensor], teacher: list[Tensor], temp_teacher: float | Tensor
    ) -> Tensor:
        """Return the loss with the center as it was before, and move the center.

        Args:
            student: One (B, D) per crop, the teacher's crops first and in the same order. A head
                that puts out all crops in one tensor spares the copy: pass `.view(crops, B, D)` to
                the op below instead of stacking.
            teacher: One (B, D) per global crop.
            temp_teacher: Float, or a 0-dim tensor that a captured graph follows.

        Returns:
            The 0-dim loss.
        """
        loss, center_sum = centered_crop_cross_entropy(
            torch.stack(student),
            torch.stack(teacher),
            self.center,
            temp_student=self.temp_student,
            temp_target=temp_teacher,
        )
        rows = sum(crop.shape[0] for crop in teacher)
        shared = dist.is_available() and dist.is_initialized()
        update_center_(
            self.center,
            center_sum,
            rows,
            self.center_momentum,
            all_reduce=dist.all_reduce if shared else None,
        )
        return loss
