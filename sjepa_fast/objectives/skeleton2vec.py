# SPDX-License-Identifier: Apache-2.0
"""Skeleton2vec: regress, at the masked tokens, the mean of the target encoder's layers (method 4).

Shapes: B sequences (clips x bodies), R masks of each, N = S*V tokens, K kept, Q masked, D width.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.models.encoder import SkeletonTransformer
from sjepa_fast.objectives.coordinates import mean_squared_error, rows_at, squared_errors
from sjepa_fast.objectives.distinct import Encoded
from sjepa_fast.objectives.objective import Objective, StepInput, StepOutput, Targets
from sjepa_fast.skeletons import SkeletonLayout
from sjepa_kernels import ContextualizedTargets

# `objective.target_norm` to the names that `sjepa_kernels` uses.
_LAYER_NORMS = {"instance": "instance", "layernorm": "layer", "none": "none"}


class Skeleton2vec(Objective):
    """View encoder, predictor and EMA target encoder.

    The authors' EMA copy includes the predictor, which is never used; ours does not.
    """

    target_encoder: SkeletonTransformer

    def __init__(self, config: TrainConfig, layout: SkeletonLayout) -> None:
        super().__init__(config, layout)
        _init_as_authors(self)
        self.target_encoder = copy.deepcopy(self.view_encoder).requires_grad_(False)

    @torch.no_grad()
    def make_targets(self, batch: StepInput) -> Targets:
        """Return y of all tokens.

        y is the mean of the target encoder's last K block outputs, each normalised, then LayerNorm
        over channels (method 4.3).
        """
        norm = _LAYER_NORMS[self.objective.target_norm]
        layers = ContextualizedTargets(self.objective.target_layers, norm)
        features = self.network("target_encoder")(batch.target_input(), layers=layers)
        return Targets(layers.finish(), Encoded(features, batch.distinct))

    def forward(self, batch: StepInput) -> StepOutput:
        """Loss of one step.

        L = mean over masked tokens and channels of (prediction - y)^2 (method 4.4).

        Returns the loss and the target encoder's features, as they are used downstream.
        """
        visible, prediction, y, encoded = self._compared(batch)
        loss = self.regularized(mean_squared_error(prediction, y), visible, batch)
        return StepOutput(loss, encoded)

    def token_losses(self, batch: StepInput) -> Tensor:
        """Mean squared error of each predicted token's channels."""
        _, prediction, y, _ = self._compared(batch)
        return squared_errors(prediction, y).view(len(batch.view_BNP), -1)

    def _compared(self, batch: StepInput) -> tuple[Tensor, Tensor, Tensor, Encoded]:
        """Features of the visible tokens, the prediction, its target, the target's features."""
        # First, so that its memory is free before the others keep activations for the backward.
        targets = batch.targets or self.make_targets(batch)
        y = targets.tokens_UND.flatten(0, 1).index_select(0, batch.target_rows())
        encoded = targets.encoded
        del targets
        visible = self.encode_visible(batch)
        prediction = self._predict(visible, batch.ids_keep_BK, batch.ids_mask_BQ)
        return visible, prediction, y, encoded

    def _predict(self, visible_BKD: Tensor, ids_keep_BK: Tensor, ids_mask_BQ: Tensor) -> Tensor:
        if not self.objective.legacy_tube_layout:
            right: Tensor = self.network("predictor")(visible_BKD, ids_keep_BK, ids_mask_BQ)
            return right
        place, rest = legacy_places(ids_keep_BK, ids_mask_BQ, self.joints)
        packed = self.network("predictor")(visible_BKD, place, rest, masked_only=False)
        token_BN = torch.cat([place, rest], dim=1).long()
        return rows_at(packed, rows_at(token_BN.argsort(dim=1)[:, :, None], ids_mask_BQ)[:, :, 0])


def legacy_places(ids_keep_BK: Tensor, ids_mask_BQ: Tensor, joints: int) -> tuple[Tensor, Tensor]:
    """Token ids that the K visible features and the Q mask tokens take in the authors' decoder.

    It reshapes the visible features, followed by the mask tokens, to (segments, joints) before it
    reorders each segment to [visible joints, masked joints]; so the features fill the first
    segments (method 4.2). Within a segment our joints are in rising order, the authors' in the
    order of their random keys.
    """
    batch, kept = ids_keep_BK.shape
    segments = (kept + ids_mask_BQ.shape[1]) // joints
    parts = [ids.view(batch, segments, -1) for ids in (ids_keep_BK, ids_mask_BQ)]
    order = torch.cat(parts, dim=2).flatten(1)
    return order[:, :kept].contiguous(), order[:, kept:].contiguous()


def _init_as_authors(module: nn.Module) -> None:
    """Linear truncated normal of 0.02, LayerNorm eps 1e-6 (method 2).

    The authors' temporal position table starts at zero, evidently by mistake; ours is drawn like
    the others.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
        elif isinstance(part, nn.LayerNorm):
            part.eps = 1e-6
