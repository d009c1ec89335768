"""What each objective consists of, for code that must know it without building the networks.

Configuration, data path, validation and FLOP count all read this one table, so that none of them
can miss a new objective (method 5.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sjepa_fast.config.schema import ModelConfig


@dataclass(frozen=True)
class ObjectiveTraits:
    """Composition of one objective."""

    target_encoder: bool  # whether an EMA encoder, which sees the whole clip, makes the targets
    # features: D numbers per masked token; numbers: the P of its tubelet.
    predicts: Literal["features", "numbers"]
    # Source of masks and targets; clip: the crop before the view is made (S-JEPA).
    masks_from: Literal["clip", "view"]
    target_norms: tuple[str, ...]  # values of `objective.target_norm`

    def outputs(self, model: ModelConfig) -> int:
        """Return how many numbers are predicted for each masked token."""
        return model.width if self.predicts == "features" else model.segment_length * 3


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
}
