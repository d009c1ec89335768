"""The loss of DINO (Caron et al. 2021) on two global and any number of local crops.

Every pair of a teacher's crop and another crop of the student counts once. No probabilities of
the teacher are stored, and its rows are addressed by an index instead of being repeated.

Shapes: B images, D outputs of the head.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sjepa_kernels import centered_softmax_cross_entropy, update_center_


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
        """Return the loss with the centre as it was before, and move the centre.

        Args:
            student: One (B, D) a crop, the teacher's crops first and in the same order.
            teacher: One (B, D) a global crop.
            temp_teacher: Float, or a 0-dim tensor that a captured graph follows.

        Returns:
            The 0-dim loss.
        """
        losses, total = [], torch.zeros_like(self.center)
        for t, teacher_BD in enumerate(teacher):
            others = [crop for s, crop in enumerate(student) if s != t]
            rows = torch.arange(teacher_BD.shape[0], device=teacher_BD.device)
            loss, center_sum = centered_softmax_cross_entropy(
                torch.cat(others),
                teacher_BD,
                self.center,
                temp_student=self.temp_student,
                temp_target=temp_teacher,
                teacher_index_R=rows.repeat(len(others)),
            )
            losses.append(loss)
            # Each row of the teacher was summed once for each crop that it was compared with.
            total += center_sum / len(others)
        count = torch.full_like(total[:1], sum(crop.shape[0] for crop in teacher))
        sums = torch.cat([total, count])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        update_center_(self.center, sums[:-1], sums[-1], self.center_momentum)
        return torch.stack(losses).mean()
