# SPDX-License-Identifier: Apache-2.0
"""What a protocol returns: predictions and scores of each seed, and their mean over seeds.

Shapes: S seeds, Q test clips, C classes.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sjepa_fast.evaluation.saved import Saved
from sjepa_fast.names import file_name


@dataclass(frozen=True)
class Outcome:
    """What a protocol measured."""

    name: str  # distinguishes it from other results of the run: protocol, encoder, pooling
    figures: dict[str, Any]  # accuracies in percent and other figures
    recipe: dict[str, Any]  # all settings of the protocol
    predicted_SQ: Tensor  # labels predicted after the last epoch
    # Class scores (logits), for ensembles; None where a protocol has none.
    scores_SQC: Tensor | None = None
    # Training clips of each seed, by name, where they are a subset.
    ids: dict[int, list[str]] = field(default_factory=dict)
    # Numbers per clip that the classifier gets, where the encoder is frozen.
    features: int | None = None


@dataclass(frozen=True)
class Result:
    """An outcome with its conditions, ready to be written."""

    outcome: Outcome
    run: Path  # run folder that gets the result
    data: str  # store and split, as in the file names
    conditions: dict[str, Any]  # weights, data and device that the figures belong to
    labels_Q: Tensor  # true labels of the test clips
    clip_names: list[str]  # names of the test clips
    class_names: tuple[str, ...]
    # Other scores of the same clips, by what they are of.
    beside: dict[str, Saved] = field(default_factory=dict)
    # Those of them that had to be made, ready to be written.
    made: tuple[Result, ...] = ()
    # Fingerprint of what was asked, by which a later call knows it again; for baselines.
    request: str | None = None

    @property
    def name(self) -> str:
        """Name of its files, which cannot leave their folder."""
        return file_name(f"{self.outcome.name}-{self.data}")


def over_seeds(name: str, values: Sequence[float]) -> dict[str, Any]:
    """Return mean, sample deviation (None for one seed) and the values themselves."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {
        name: statistics.mean(values),
        f"{name}_std": deviation,
        f"{name}_per_seed": list(values),
    }
