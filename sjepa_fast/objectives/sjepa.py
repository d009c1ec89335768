"""S-JEPA: predict, at the masked tokens, the target encoder's centred softmax of latents.

Shapes: B clips, M bodies, T frames, V joints, C coordinates, N tokens, P numbers a token,
K kept, Q masked, D width; sequences are clips x bodies.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sjepa_fast.config import TrainConfig
from sjepa_fast.data.loader import ResidentClips
from sjepa_fast.models.encoder import SkeletonTransformer
from sjepa_fast.models.predictor import Predictor
from sjepa_fast.objectives.masking import draw_mask
from sjepa_fast.skeletons import SkeletonLayout
from sjepa_kernels import centered_softmax_cross_entropy


@dataclass(frozen=True)
class StepInput:
    """What the three networks read in one step."""

    view_BNP: Tensor
    clip_BNP: Tensor
    ids_keep_BK: Tensor
    ids_mask_BQ: Tensor


class SJEPA(nn.Module):
    """View encoder, predictor, EMA target encoder and centre (method section 3).

    Args:
        config: Sizes and objective settings.
        layout: Joints of the store.
    """

    center: Tensor

    def __init__(self, config: TrainConfig, layout: SkeletonLayout) -> None:
        super().__init__()
        data, model = config.data, config.model
        segments = data.frames // model.segment_length
        joints = layout.num_joints
        self.view_encoder = SkeletonTransformer(
            segments,
            joints,
            model.segment_length * 3,
            model.width,
            model.depth,
            model.heads,
            whiten=data.whiten > 0,
        )
        self.predictor = Predictor(
            segments, joints, model.width, model.predictor_depth, model.heads
        )
        self.target_encoder = copy.deepcopy(self.view_encoder).requires_grad_(False)
        self.register_buffer("center", torch.zeros(model.width))
        self.objective = config.objective

    def forward(self, batch: StepInput) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of one step.

        p1 = softmax(R_p / temp_student), p2 = softmax((R_t - c) / temp_target),
        L = -mean over masked tokens of sum_d p2 log p1 (method 3.2), with the centre as it was
        before this batch.

        Args:
            batch: Tubelets of the view and of the clip, and the mask.

        Returns:
            The scalar loss; the sum of R_t over this process's masked tokens (D,), for the
            centre; and the target features (sequences, N, D).
        """
        visible = self.view_encoder(batch.view_BNP, batch.ids_keep_BK)
        prediction = self.predictor(visible, batch.ids_keep_BK, batch.ids_mask_BQ)
        with torch.no_grad():
            target = self.target_encoder(batch.clip_BNP)
            if self.objective.target_norm == "layernorm":
                target = nn.functional.layer_norm(target, target.shape[-1:])
            sequences, tokens, width = target.shape
            first_row = torch.arange(sequences, device=target.device) * tokens
            rows = (batch.ids_mask_BQ + first_row[:, None]).flatten()
        loss, center_sum = centered_softmax_cross_entropy(
            prediction.flatten(0, 1),
            target.reshape(-1, width),
            self.center,
            temp_student=self.objective.temp_student,
            temp_target=self.objective.temp_target,
            teacher_index_R=rows,
        )
        return loss, center_sum, target


@torch.no_grad()
def make_step_input(
    clips: ResidentClips, ids_B: Tensor, seed: Tensor, step: Tensor, config: TrainConfig
) -> StepInput:
    """Crop, view, tubelets and mask of a batch of clips.

    The mask is drawn from the clip, not from its view (method 3.4, our choice), per body.

    Args:
        clips: Resident clips.
        ids_B: Clip ids, int64; they key the random draws.
        seed: 0-dim int64.
        step: 0-dim int64.
        config: Crop, view, mask and token settings.

    Returns:
        The inputs of `SJEPA.forward`, with bodies folded into sequences.
    """
    view_tokens, clip_tokens = clips.train_tokens(ids_B, seed, step, config)
    bodies, joints = clips.max_bodies, clips.layout.num_joints
    drawn = draw_mask(clip_tokens, ids_B, bodies, seed, step, config.mask, joints)
    return StepInput(view_tokens, clip_tokens, drawn.ids_keep_BK, drawn.ids_mask_BQ)
