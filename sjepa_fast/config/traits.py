# SPDX-License-Identifier: Apache-2.0
"""What each objective consists of, for code that must know it without building the networks.

Configuration, data path, validation and FLOP count all read this one table, so that none of them
can miss a new objective (method 5.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sjepa_fast.config.schema import ModelConfig, TrainConfig


@dataclass(frozen=True)
class ObjectiveTraits:
    """Composition of one objective."""

    target_encoder: bool  # whether an EMA encoder, which sees the whole clip, makes the targets
    # features: D numbers per masked token; numbers: the P of its tubelet; nothing: no predictor.
    predicts: Literal["features", "numbers", "nothing"]
    # Source of masks and targets; clip: the crop before the view is made (S-JEPA).
    masks_from: Literal["clip", "view"]
    target_norms: tuple[str, ...]  # values of `objective.target_norm`
    several_crops: bool = False  # whether a step sees `objective.views` crops of each clip

    def outputs(self, model: ModelConfig) -> int:
        """Return how many numbers are predicted for each masked token."""
        numbers = {"features": model.width, "numbers": model.segment_length * 3, "nothing": 0}
        return numbers[self.predicts]


TRAITS = {
    "sjepa": ObjectiveTraits(
        target_encoder=True,
        predicts="features",
        masks_from="clip",
        target_norms=("none", "layernorm"),
    ),
    "skeleton2vec": ObjectiveTraits(
        target_encoder=True,
        predicts="features",
        masks_from="view",
        target_norms=("instance", "layernorm", "none"),
    ),
    "mamp": ObjectiveTraits(
        target_encoder=False,
        predicts="numbers",
        masks_from="view",
        target_norms=("patch", "temporal", "none"),
    ),
    "skeletonmae": ObjectiveTraits(
        target_encoder=False,
        predicts="numbers",
        masks_from="view",
        target_norms=("patch", "temporal", "none"),
    ),
    "multiview": ObjectiveTraits(
        target_encoder=False,
        predicts="nothing",
        masks_from="view",
        target_norms=("none",),
        several_crops=True,
    ),
}


def masked_views(config: TrainConfig) -> int:
    """Return how often the view encoder sees a sequence in a step, each time with another mask."""
    if TRAITS[config.objective.kind].several_crops:
        return config.objective.views
    return config.mask.num_masked_views
