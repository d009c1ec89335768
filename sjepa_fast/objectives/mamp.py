"""MAMP: regress, at the masked tokens, the normalised motion of the clip (method 5.1).

Shapes: B sequences (clips x bodies), R masks of each, N tokens, P numbers a token, Q masked.
"""

from __future__ import annotations

import torch

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.objectives.numbers import mean_squared_error, motion, normalized, rows_at
from sjepa_fast.objectives.objective import Objective, StepInput, StepOutput
from sjepa_fast.skeletons import SkeletonLayout


class MAMP(Objective):
    """View encoder and a predictor of motion; no target encoder.

    Args:
        config: Sizes and objective settings.
        layout: Joints of the store.
    """

    def __init__(self, config: TrainConfig, layout: SkeletonLayout) -> None:
        super().__init__(config, layout, outputs=config.model.segment_length * 3)

    def forward(self, batch: StepInput) -> StepOutput:
        """Loss of one step.

        L = mean over masked tokens and their P numbers of (prediction - target)^2, where the
        target is the forward difference of the frames that the view encoder sees, normalised.

        Args:
            batch: Tubelets of the clip, and the masks.

        Returns:
            The loss and the features of the visible tokens (B*R, K, D).
        """
        visible = self.encode_visible(batch)
        prediction = self.predictor(visible, batch.ids_keep_BK, batch.ids_mask_BQ)
        with torch.no_grad():
            change = motion(batch.view_BNP, self.joints)
            target = normalized(change, self.joints, self.objective.target_norm)
            target = rows_at(target, batch.ids_by_sequence())
        return StepOutput(mean_squared_error(prediction, target), visible.detach())
