# SPDX-License-Identifier: Apache-2.0
"""S-JEPA: predict, at the masked tokens, the target encoder's centered softmax of latents.

Shapes: B sequences (clips x bodies), N tokens, Q masked, D width.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.models.encoder import SkeletonTransformer
from sjepa_fast.objectives.distinct import Encoded
from sjepa_fast.objectives.objective import Objective, StepInput, StepOutput, Targets
from sjepa_fast.skeletons import SkeletonLayout
from sjepa_kernels import centered_softmax_cross_entropy


class SJEPA(Objective):
    """View encoder, predictor, EMA target encoder and center (method section 3)."""

    target_encoder: SkeletonTransformer
    center: Tensor

    def __init__(self, config: TrainConfig, layout: SkeletonLayout) -> None:
        super().__init__(config, layout, embed_mask_token=True)
        self.target_encoder = copy.deepcopy(self.view_encoder).requires_grad_(False)
        self.center = torch.zeros(config.model.width)

    @torch.no_grad()
    def make_targets(self, batch: StepInput) -> Targets:
        """Return the target features R_t, normalised if so configured."""
        target = self.network("target_encoder")(batch.target_input())
        if self.objective.target_norm == "layernorm":
            target = nn.functional.layer_norm(target, target.shape[-1:])
        return Targets(target, Encoded(target, batch.distinct))

    def forward(self, batch: StepInput) -> StepOutput:
        """Loss of one step.

        p1 = softmax(R_p / temp_student), p2 = softmax((R_t - c) / temp_target), L = -mean over
        masked tokens of sum_d p2 log p1 (method 3.2), with the center as it was before this batch.

        Returns the loss; the target features; and the sum of R_t over the masked tokens
        of this process, for the center.
        """
        visible, prediction, targets, rows = self._compared(batch)
        loss, center_sum = self._cross_entropy(prediction.flatten(0, 1), targets, rows)
        loss = self.regularized(loss, visible, batch)
        return StepOutput(loss, targets.encoded, center_sum, len(rows))

    def token_losses(self, batch: StepInput) -> Tensor:
        """Cross-entropy of each predicted token."""
        _, prediction, targets, rows = self._compared(batch)
        target = targets.tokens_UND.flatten(0, 1).index_select(0, rows).float()
        wanted = ((target - self.center) / self.objective.temp_target).softmax(-1)
        said = (prediction.flatten(0, 1).float() / self.objective.temp_student).log_softmax(-1)
        return -(wanted * said).sum(-1).view(len(batch.view_BNP), -1)

    def _compared(self, batch: StepInput) -> tuple[Tensor, Tensor, Targets, Tensor]:
        """Features of the visible tokens, the prediction, the targets, and which rows of them."""
        # First, so that its memory is free before the others keep activations for the backward.
        targets = batch.targets or self.make_targets(batch)
        rows = batch.target_rows()
        visible = self.encode_visible(batch)
        prediction = self.network("predictor")(visible, batch.ids_keep_BK, batch.ids_mask_BQ)
        return visible, prediction, targets, rows

    def _cross_entropy(
        self, prediction_RD: Tensor, targets: Targets, rows_R: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean over predicted tokens, and the sum of their targets."""
        return centered_softmax_cross_entropy(
            prediction_RD,
            targets.tokens_UND.flatten(0, 1),
            self.center,
            temp_student=self.objective.temp_student,
            temp_target=self.objective.temp_target,
            teacher_index_R=rows_R,
        )
