# SPDX-License-Identifier: Apache-2.0
"""Multi-view: several crops and views of a clip agree, and a regularizer keeps clips apart.

No target encoder, no predictor, no schedule but the rate's. After LeJEPA (Balestriero and LeCun
2025), VISReg (Wu et al. 2026, arXiv 2606.02572) and VICReg (Bardes et al. 2022, arXiv 2105.04906).

Shapes: V views, C clips of this process and N of all, M bodies, K visible tokens, D width, P
numbers of the projector.
"""

from __future__ import annotations

from sjepa_fast.models.projector import Projector
from sjepa_fast.objectives.distinct import Encoded
from sjepa_fast.objectives.objective import Objective, StepInput, StepOutput
from sjepa_fast.objectives.regularizer import regularize


class MultiView(Objective):
    """View encoder and projector."""

    projector: Projector

    def forward(self, batch: StepInput) -> StepOutput:
        """Loss of one step.

        z = projector(mean of the view encoder's features over visible tokens and present bodies),
        inv = mean (mean_v z - z)^2 over views, clips and the P numbers, and
        L = (1 - lambda) inv + lambda regularizer(z).

        Returns the loss, and the clips' features before the projector (V, N, D).
        """
        assert batch.samples is not None
        visible = self.encode_visible(batch)
        by_crop_VCMKD = visible.unflatten(0, (-1, *batch.samples.shares_CM.shape))
        features = batch.samples.features(by_crop_VCMKD)
        z = self.projector(features)
        inv = (z.mean(0) - z).square().mean()
        share = self.objective.regularizer_weight
        loss = (1 - share) * inv + share * regularize(z, batch.samples, self.objective)
        return StepOutput(loss, Encoded(features.detach()))
