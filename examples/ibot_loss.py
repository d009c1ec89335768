# SPDX-License-Identifier: Apache-2.0
"""The losses of DINO (Caron et al. 2021) and iBOT (Zhou et al. 2022).

DINO's loss over global and local crops is the module `CenteredCropCrossEntropy` itself: it takes
lists of crops and loads DINO's and lightly's centers. iBOT adds the masked patches of the global
crops. No probabilities are stored, and on a GPU each crop is read once for all of its pairs.

Shapes: B images, G global crops, N patches of a crop, D and K outputs of the two heads.
"""

from torch import Tensor, nn

from sjepa_kernels import CenteredCropCrossEntropy, CenteredCrossEntropy


class IbotLoss(nn.Module):
    """The loss of crops plus the mean over images of the mean loss of their masked patches.

    A checkpoint of iBOT's own loss loads as `{"cls.center": state["center"], "patch.center":
    state["center2"]}`.

    Args:
        width: D.
        patch_width: K.
        temp_student: Temperature of the student.
        center_momentum: m in c <- m c + (1 - m) mean of the teacher's rows, after each loss.
    """

    def __init__(
        self, width: int, patch_width: int, temp_student: float = 0.1, center_momentum: float = 0.9
    ) -> None:
        super().__init__()
        self.cls = CenteredCropCrossEntropy(width, temp_student, center_momentum)
        self.patch = CenteredCrossEntropy(
            patch_width, temp_student, center_momentum=center_momentum
        )

    def forward(
        self,
        crops: tuple[list[Tensor], list[Tensor]],
        patches: tuple[Tensor, Tensor],
        masked: Tensor,
        temps: tuple[float, float] = (0.04, 0.04),
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of the crops and that of the patches, and move both centers.

        Args:
            crops: Student's, the global ones first, and teacher's: one (B, D) each.
            patches: Student's and teacher's of the global crops, (G B, N, K).
            masked: Which of them were hidden from the student, bool (G B, N).
            temps: Teacher's temperatures of crops and patches.

        Returns:
            Two 0-dim losses; iBOT adds them up.
        """
        student, teacher = crops
        loss_cls: Tensor = self.cls(student, teacher, temps[0])
        weights = masked / masked.sum(dim=1, keepdim=True).clamp(min=1)
        self.patch.temp_target = temps[1]
        of_student, of_teacher = (x.flatten(0, 1) for x in patches)
        loss: Tensor = self.patch(of_student, of_teacher, row_weights_R=weights.flatten())
        # The op's mean is over images with a masked patch; iBOT's counts the others as zero.
        return loss_cls, loss * weights.sum() / len(masked)
