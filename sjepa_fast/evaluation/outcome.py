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


@dataclass(frozen=True)
class Outcome:
    """What a protocol measured.

    Attributes:
        name: Distinguishes it from other results of the run: protocol, encoder, pooling.
        figures: Accuracies in percent and other figures.
        recipe: All settings of the protocol.
        predicted_SQ: Labels predicted after the last epoch.
        scores_SQC: Class scores (logits), for ensembles; None where a protocol has none.
        ids: Training clips of each seed, by name, where they are a subset.
    """

    name: str
    figures: dict[str, Any]
    recipe: dict[str, Any]
    predicted_SQ: Tensor
    scores_SQC: Tensor | None = None
    ids: dict[int, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """An outcome with its conditions, ready to be written.

    Attributes:
        outcome: What was measured.
        run: Run folder that gets the result.
        data: Store and split, as in the file names.
        conditions: Weights, data and device that the figures belong to.
        labels_Q: True labels of the test clips.
        clip_names: Names of the test clips.
        class_names: Names of the labels.
    """

    outcome: Outcome
    run: Path
    data: str
    conditions: dict[str, Any]
    labels_Q: Tensor
    clip_names: list[str]
    class_names: tuple[str, ...]


def over_seeds(name: str, values: Sequence[float]) -> dict[str, Any]:
    """Return mean, sample deviation (None for one seed) and the values themselves."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {
        name: statistics.mean(values),
        f"{name}_std": deviation,
        f"{name}_per_seed": list(values),
    }
