# SPDX-License-Identifier: Apache-2.0
"""The losses of DINOv2 and DINOv3 with Sinkhorn-Knopp: DINO's over crops, iBOT's over patches.

Sinkhorn's probabilities are a softmax of the teacher's logits less a center, so nothing of their
size is stored. `python -m examples.dinov2_loss` says how even the prototypes are used.

Shapes: B images, K prototypes, P masked patches.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from sjepa_kernels import (
    centered_crop_cross_entropy,
    centered_softmax_cross_entropy,
    sinkhorn_center,
)


def center_of(teacher: Tensor, temp: float | Tensor) -> Tensor:
    """Return the center of three iterations over the rows of all processes."""
    shared = dist.is_available() and dist.is_initialized()
    return sinkhorn_center(teacher, temp, all_reduce=dist.all_reduce if shared else None)


def dino_loss(student: list[Tensor], teacher: list[Tensor], temp_teacher: float | Tensor) -> Tensor:
    """Return the mean over pairs (t, s != t) and images of -sum_k p_t log softmax(s / 0.1).

    Args:
        student: One (B, K) per crop, the teacher's crops first and in the same order.
        teacher: One (B, K) per global crop, balanced together.
        temp_teacher: Float, or a 0-dim tensor that a captured graph follows.
    """
    teacher_TBK = torch.stack(teacher)
    center = center_of(teacher_TBK.flatten(0, 1), temp_teacher)
    loss, _ = centered_crop_cross_entropy(student, teacher_TBK, center, temp_target=temp_teacher)
    return loss


def ibot_loss(
    student_PK: Tensor, teacher_PK: Tensor, masks_BN: Tensor, temp_teacher: float | Tensor
) -> Tensor:
    """Return the mean over images of the mean over their masked patches; without any it is 0.

    Args:
        student_PK: Of the masked patches of all images, in the order of `masks_BN.nonzero()`.
        teacher_PK: Of the same patches.
        masks_BN: True where a patch is masked.
        temp_teacher: As above.
    """
    patches_B = masks_BN.sum(dim=1)
    weights_P = (1 / patches_B).repeat_interleave(patches_B, output_size=len(student_PK))
    center = center_of(teacher_PK, temp_teacher)
    of_patches = {"row_weights_R": weights_P, "temp_target": temp_teacher}
    loss, _ = centered_softmax_cross_entropy(student_PK, teacher_PK, center, **of_patches)
    return loss * (weights_P.sum() / len(masks_BN))


def main() -> None:
    """Print how much of the targets the most used prototype has, and both losses."""
    torch.manual_seed(0)
    crops, temp = list(0.3 * torch.randn(2, 32, 64) + 0.3 * torch.randn(64)), 0.07
    rows = torch.cat(crops)
    for name, logits in (("softmax", rows), ("Sinkhorn", rows - center_of(rows, temp))):
        used = torch.softmax(logits / temp, dim=1).mean(dim=0)
        print(f"{name}: the most used of 64 prototypes has {used.max():.1%} of the targets")
    masks = torch.ones(8, 4, dtype=torch.bool)
    losses = dino_loss(crops, crops, temp), ibot_loss(*crops, masks, temp)
    print("DINO {:.3f}, iBOT {:.3f}".format(*losses))


if __name__ == "__main__":
    main()
