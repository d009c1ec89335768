"""Ops that hold state, as modules."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sjepa_kernels.center import update_center_
from sjepa_kernels.centered_ce import centered_softmax_cross_entropy


class CenteredCrossEntropy(nn.Module):
    """`centered_softmax_cross_entropy` with its centre, updated after each use in training mode.

    The batch mean that moves the centre is taken over the rows of all processes.

    Args:
        width: D.
        temp_student: Student temperature.
        temp_target: Target temperature.
        center_momentum: m in c <- m c + (1 - m) mean.
        impl: "auto", "triton", "cpu" or "torch".
    """

    center: Tensor

    def __init__(
        self,
        width: int,
        temp_student: float = 0.1,
        temp_target: float = 0.06,
        center_momentum: float = 0.9,
        *,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(width))
        self.temp_student = temp_student
        self.temp_target = temp_target
        self.center_momentum = center_momentum
        self.impl = impl

    def forward(
        self,
        student_RD: Tensor,
        teacher: Tensor,
        teacher_index_R: Tensor | None = None,
        row_weights_R: Tensor | None = None,
    ) -> Tensor:
        """Return the loss with the centre as it was before this batch.

        Args:
            student_RD: Student features.
            teacher: Teacher features, (R, D), or (any, D) with an index.
            teacher_index_R: Row of the teacher for each student row.
            row_weights_R: Weight of each row.

        Returns:
            The 0-dim loss.
        """
        loss, center_sum = centered_softmax_cross_entropy(
            student_RD,
            teacher,
            self.center,
            temp_student=self.temp_student,
            temp_target=self.temp_target,
            teacher_index_R=teacher_index_R,
            row_weights_R=row_weights_R,
            impl=self.impl,
        )
        if self.training:
            count = torch.full_like(center_sum[:1], student_RD.shape[0])
            total = torch.cat([center_sum, count])
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(total)
            update_center_(self.center, total[:-1], total[-1], self.center_momentum)
        return loss
