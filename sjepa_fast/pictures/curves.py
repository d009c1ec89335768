# SPDX-License-Identifier: Apache-2.0
"""The picture of the curves of runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from matplotlib.figure import Figure

from sjepa_fast.errors import InputError
from sjepa_fast.reporting.curves import run_curves
from sjepa_fast.run_folder import read_run
from sjepa_fast.viz.curves import curves_figure


@dataclass(frozen=True)
class CurvesRequest:
    """What runs have logged, beside the scores of a random encoder and of raw coordinates."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders; a line for each."""
    out: Path | None = None
    """File to write: .png, .svg or .pdf; default: curves.png in the run, if it is one."""


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
