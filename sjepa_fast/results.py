# SPDX-License-Identifier: Apache-2.0
"""`python -m sjepa_fast.results RUN...`: all scores of one run or several in one table.

A score stands beside what it means little without: the same probe on raw coordinates, on the run's
own initialisation, and training from scratch, where the folder has them. Several runs are taken as
seeds of one setting: their mean and standard deviation over runs follow.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from sjepa_fast import cli
from sjepa_fast.errors import InputError
from sjepa_fast.names import printable, say
from sjepa_fast.opening import read_json

BESIDE = ("raw", "random", "scratch")
LEGEND = "score in %; s.e.: for the number of test clips; raw, random, scratch: the same protocol"
HEAD = ("result", "numbers per clip", "score", "s.e.", *BESIDE)


@dataclass(frozen=True)
class ResultsConfig:
    """Show the scores of runs in one table."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders; several are taken as seeds of one setting."""


@dataclass(frozen=True)
class Score:
    """One result of one run."""

    name: str
    features: int | None
    headline: float
    error: float | None
    """Standard error for the number of test clips; None in results of older versions."""
    beside: dict[str, float]


def _number(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def read_scores(run: Path) -> list[Score]:
    """Return a run's results by name; files that are no results are left out.

    Raises InputError if the folder has none.
    """
    found = []
    for file in sorted((run / "results").glob("*.json")):
        try:
            result = read_json("run", file)
        except InputError:
            continue
        headline = _number(result.get("headline"))
        if headline is None or not isinstance(result.get("protocol"), str):
            continue
        others = result.get("beside")
        rows = others.items() if isinstance(others, dict) else ()
        beside = {
            label: number
            for label, row in rows
            if isinstance(row, dict) and (number := _number(row.get("headline"))) is not None
        }
        width = result.get("features")
        features = width if isinstance(width, int) else None
        error = _number(result.get("standard_error"))
        found.append(Score(file.stem, features, headline, error, beside))
    if not found:
        raise InputError("run", f"{run} has no results", "score it with sjepa_fast.evaluate first")
    return found


def _cells(name: str, scores: list[Score]) -> list[str]:
    """Return a row of scores of the same name: of one run, or the mean over several."""
    values = [score.headline for score in scores]
    first = scores[0]
    shown = f"{statistics.mean(values):.1f}"
    error = "-" if first.error is None else f"{first.error:.1f}"
    if len(values) > 1:
        shown += f" ± {statistics.stdev(values):.1f} ({len(values)})"
    beside = []
    for label in BESIDE:
        others = [score.beside[label] for score in scores if label in score.beside]
        beside.append(f"{statistics.mean(others):.1f}" if others else "-")
    width = "-" if first.features is None else str(first.features)
    return [printable(name), width, shown, error, *beside]


def table(rows: list[list[str]]) -> str:
    """Return rows of cells under the head, in columns."""
    lines = [list(HEAD), *rows]
    widths = [max(len(line[k]) for line in lines) for k in range(len(HEAD))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def table_of(scores: list[Score]) -> str:
    """Return the table of scores, of which those of one name are seeds, and its legend."""
    by_name: dict[str, list[Score]] = {}
    for score in scores:
        by_name.setdefault(score.name, []).append(score)
    rows = table([_cells(name, seeds) for name, seeds in by_name.items()])
    return f"{rows}\n{LEGEND}"


def results(request: ResultsConfig) -> int:
    """Print the table of the runs; return 0.

    Raises InputError if no run is named, or one has no results.
    """
    if not request.runs:
        raise InputError("run", "not given", "name one or more run folders")
    say(table_of([score for run in request.runs for score in read_scores(run)]))
    if len(request.runs) > 1:
        say("±: standard deviation over runs, in brackets how many have this result")
    return 0


def main(argv: list[str] | None = None) -> None:
    """Console entry: exit with 0, 1, 2 (usage) or 130 (interrupted)."""
    cli.run_main(lambda: results(cli.parse(ResultsConfig, argv, prog="sjepa_fast.results")))


if __name__ == "__main__":
    main()
