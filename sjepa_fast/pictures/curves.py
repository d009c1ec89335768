"""The curves of runs: what they have logged, and what their scores are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from matplotlib.figure import Figure

from sjepa_fast.errors import InputError
from sjepa_fast.opening import check_fields, read_json
from sjepa_fast.run_folder import read_run
from sjepa_fast.runtime.logging import read_metrics
from sjepa_fast.viz.curves import RunCurves, curves_figure

SCORES = Path("results/knn-before-after.json")
_FIELDS = {"before": (float,), "raw": (float, type(None))}


@dataclass(frozen=True)
class CurvesRequest:
    """What runs have logged, beside the scores of a random encoder and of raw coordinates."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders; a line for each."""
    out: Path | None = None
    """File to write: .png, .svg or .pdf; default: curves.png in the run, if it is one."""


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


def draw_curves(request: CurvesRequest, _moving: bool) -> Figure:
    """Draw the curves of runs; raises InputError if one is no run, or has logged too little."""
    if not request.runs:
        raise InputError("run", "not given", "name one or more run folders")
    runs = []
    for run in request.runs:
        read_run(run)
        curves = run_curves(run)
        if len(curves.rows) < 2:
            value = f"{run} has logged {len(curves.rows)} rows"
            raise InputError("run", value, "a curve takes two: train it for longer")
        runs.append(curves)
    return curves_figure(runs)
