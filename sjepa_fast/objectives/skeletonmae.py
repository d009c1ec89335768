"""SkeletonMAE on a plain transformer: regress the masked tokens' normalised coordinates.

Method 5.2; neither of the two papers of that name (method 5.3), but the row "SkeletonMAE
(Transformer)" of the comparisons. Shapes: B sequences (clips x bodies), R masks of each, P numbers
a token, K kept, Q masked, D width.
"""

from __future__ import annotations

import torch

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.objectives.numbers import mean_squared_error, normalized, rows_at
from sjepa_fast.objectives.objective import Objective, StepInput, StepOutput
from sjepa_fast.skeletons import SkeletonLayout


class SkeletonMAE(Objective):
    """View encoder and a predictor of coordinates; no target encoder.

    Args:
        config: Sizes and objective settings.
        layout: Joints of the store.
    """

    def __init__(self, config: TrainConfig, layout: SkeletonLayout) -> None:
        super().__init__(config, layout, outputs=config.model.segment_length * 3)

    def forward(self, batch: StepInput) -> StepOutput:
        """Loss of one step.

        L = mean over masked tokens and their P numbers of (prediction - target)^2, where the
        target is the coordinates that the view encoder sees, normalised.

        Args:
            batch: Tubelets of the clip, and the masks.

        Returns:
            The loss and the features of the visible tokens (B*R, K, D).
        """
        visible = self.encode_visible(batch)
        prediction = self.predictor(visible, batch.ids_keep_BK, batch.ids_mask_BQ)
        with torch.no_grad():
            target = normalized(batch.view_BNP, self.joints, self.objective.target_norm)
            target = rows_at(target, batch.ids_by_sequence())
        return StepOutput(mean_squared_error(prediction, target), visible.detach())
