# SPDX-License-Identifier: Apache-2.0
"""`python -m sjepa_fast.report RUN...`: one page of one run or several, which needs no network.

Training writes the page of its run by itself, `RUN/report.html`. Runs that differ in the seed alone
are folded into mean and standard error; others stand side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from sjepa_fast import cli
from sjepa_fast.errors import InputError
from sjepa_fast.names import say
from sjepa_fast.reporting.records import read_run_records
from sjepa_fast.reporting.write import NAME, scene_of_folder, write_page


@dataclass(frozen=True)
class ReportConfig:
    """Write one page of runs: curves, clips, scores, speed, configuration."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders; those that differ in the seed alone are folded into one."""

    out: Annotated[Path | None, tyro.conf.arg(name="out")] = None
    """The page; report.html in the run's folder, or for several runs where you are."""


def report(request: ReportConfig) -> int:
    """Write the page and say where it is; return 0.

    Raises InputError if no run is named, or its records are damaged.
    """
    if not request.runs:
        raise InputError("run", "not given", "name one or more run folders")
    folders = list(dict.fromkeys(run.resolve() for run in request.runs))
    if len(folders) < len(request.runs):
        raise InputError("run", "a folder is named twice", "name each run once")
    out = request.out or (request.runs[0] / NAME if len(folders) == 1 else Path(NAME))
    if not out.parent.is_dir():
        raise InputError("out", f"{out.parent} is no folder", "make it first")
    runs = [read_run_records(run) for run in request.runs]
    for note in write_page(runs, out, scene_of_folder):
        say(f"note: {note}")
    say(f"report: {out} ({out.stat().st_size / 1e6:.1f} MB)")
    return 0


def main(argv: list[str] | None = None) -> None:
    """Console entry: exit with 0, 1, 2 (usage) or 130 (interrupted)."""
    cli.run_main(lambda: report(cli.parse(ReportConfig, argv, prog="sjepa_fast.report")))


if __name__ == "__main__":
    main()
