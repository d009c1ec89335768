# SPDX-License-Identifier: Apache-2.0
"""The scores in a run's folder, without what only a plot needs, for the model's card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sjepa_fast.errors import InputError
from sjepa_fast.opening import read_json

# What a score depends on; the rest is the confusion matrix, classes, and the recipe's own values.
CONDITIONS = (
    *("protocol", "encoder", "pool", "store", "split", "stream", "eval_crop", "dtype", "features"),
    *("train_clips", "test_clips", "test_clips_seen_in_training"),
)
MOST = 200


def run_results(run: Path, encoder: str, weights_sha256: str) -> list[dict[str, Any]]:
    """Return conditions and figures of a run's results: this encoder's, and the baselines'.

    Results of other checkpoints, and files that are no results, are left out.
    """
    found = []
    for file in sorted((run / "results").glob("*.json")):
        try:
            result = read_json("run", file)
        except InputError:
            continue
        weights = result.get("weights")
        digest = weights.get("sha256") if isinstance(weights, dict) else None
        wanted = {encoder: weights_sha256, "random": None, "raw": None}
        kind = result.get("encoder")
        if isinstance(kind, str) and kind in wanted and wanted[kind] == digest:
            found.append(_short(result))
    return found[:MOST]


def _short(result: dict[str, Any]) -> dict[str, Any]:
    conditions = {key: result.get(key) for key in CONDITIONS}
    recipe = result.get("recipe")
    values = recipe if isinstance(recipe, dict) else {}
    # A recipe that trains has a name; ranking has a metric and a scaling.
    words = [values[key] for key in ("name", "metric", "scaling") if values.get(key)]
    figures = {
        key: value
        for key, value in result.items()
        # The headline is one of the others.
        if isinstance(value, float) and key not in (*CONDITIONS, "headline")
    }
    return {**conditions, "recipe": ", ".join(map(str, words)), "figures": figures}
