# SPDX-License-Identifier: Apache-2.0
"""The curves of runs: what they have logged, and what their scores are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sjepa_fast.opening import check_fields, read_json
from sjepa_fast.runtime.logging import read_metrics

SCORES = Path("results/knn-before-after.json")
_FIELDS = {"before": (float,), "raw": (float, type(None))}
PANELS = (
    ("loss", "Training loss"),
    ("knn", "Nearest-neighbour accuracy (%)"),
    ("effective_rank", "Effective rank of the features"),
    ("channel_std", "Mean deviation of a feature"),
    ("lr", "Learning rate"),
    ("momentum", "Momentum of the target encoder"),
)


@dataclass(frozen=True)
class RunCurves:
    """What one run has logged: rows with a `step`, and scores to compare its kNN score with."""

    name: str
    rows: Sequence[dict[str, float]]
    baselines: dict[str, float]
    """Accuracy in percent by what it is of, such as raw coordinates."""

    def points(self, key: str) -> list[tuple[float, float]]:
        """Return (step, value) of the rows that have a value; a metric may be missing or None."""
        return [(row["step"], row[key]) for row in self.rows if row.get(key) is not None]


def run_curves(run: Path, scores: dict[str, Any] | None = None) -> RunCurves:
    """Return what a run has logged, with the scores before training (`before`) and of `raw`.

    They are those of its finished report, if not given; before that, the score before training is
    the row of step 0. Raises InputError if a file is damaged.
    """
    rows = read_metrics(run)
    found: dict[str, Any] = {"raw": None}
    if rows and rows[0]["step"] == 0 and "knn" in rows[0]:
        found["before"] = rows[0]["knn"]
    if scores is None and (run / SCORES).exists():
        scores = found | read_json("run", run / SCORES)
        check_fields("run", run / SCORES, scores, _FIELDS)
    found |= scores or {}
    levels = {"random encoder": found.get("before"), "raw coordinates": found["raw"]}
    baselines = {of: level for of, level in levels.items() if level is not None}
    return RunCurves(run.resolve().name, rows, baselines)
