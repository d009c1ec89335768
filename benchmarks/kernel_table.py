"""Write the measured ratios of the fused ops into kernels/README.md, from committed results.

python -m benchmarks.kernel_table

A result is `benchmarks/results/MACHINE/kernels.json`, made in two steps:
pytest benchmarks/bench_{kernels,losses,regularizers,attention,augment,masks,blocks}.py with
    --benchmark-only --benchmark-json=RAW.json
python -m benchmarks.tables condense RAW.json benchmarks/results/MACHINE/kernels.json
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.report.page import wrapped
from benchmarks.tables import RESULTS, ROOT, between

README = ROOT / "kernels" / "README.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

Row = dict[str, Any]


def comparisons(result: dict[str, Any]) -> dict[str, list[Row]]:
    """Return the rows that were timed against each other, by group and shape.

    A row takes part by its parameter `variant`; what starts with "ours" is ours, and its other
    parameters, such as a shape or a switch that is on, name the case.
    """
    found: dict[str, list[Row]] = {}
    for row in result["rows"]:
        params = dict(row.get("params") or {})
        if (variant := params.pop("variant", None)) is None:
            continue
        case = [
            " x ".join(map(str, value)) if isinstance(value, list) else str(value)
            for value in (key if value is True else value for key, value in params.items())
            if value is not False
        ]
        found.setdefault(", ".join([row["group"], *case]), []).append({**row, "variant": variant})
    return found


def table(result: dict[str, Any]) -> str:
    """Return one line for each of our variants, with its ratio to each of the others."""
    lines = [
        "| op and what was timed | ms (median) | GB/s | times as fast as |",
        "| --- | ---: | ---: | --- |",
    ]
    for name, rows in comparisons(result).items():
        others = [row for row in rows if not row["variant"].startswith("ours")]
        for row in rows:
            if row in others:
                continue
            which = row["variant"].removeprefix("ours").strip(" ,")
            ratios = [f"{o['variant']} {o['median'] / row['median']:.2f}x" for o in others]
            speed = f"{row['GB/s']:.1f}" if "GB/s" in row else "-"
            # A round of the regime `graph` has several calls.
            ms = row.get("us", 1e6 * row["median"]) / 1000
            lines.append(
                f"| {name}{f': {which}' if which else ''} | {ms:.2f} | {speed} | "
                f"{', '.join(ratios)} |"
            )
    return "\n".join(lines)


def measured() -> str:
    """Return the text between the markers: a table for each machine with a result."""
    paths = sorted(RESULTS.glob("*/kernels.json"))
    parts = []
    for path in paths:
        result = json.loads(path.read_text())
        facts = result["rows"][0]
        note = f" {result['note']}" if "note" in result else ""
        parts += [
            f"`{path.relative_to(ROOT)}`, {facts['device']}, torch {facts['torch']}, "
            f"{result['date']}.{note}",
            table(result),
        ]
    if not any(path.parent.name.startswith("gpu") for path in paths):
        parts.append(
            "On a GPU the step and its attention are measured (docs/speed.md), single ops not yet."
        )
    return wrapped("\n\n".join(parts))


def with_measured(readme: str) -> str:
    """Return the README's text with what stands between the markers made anew."""
    return between(readme, BEGIN, END, measured())


if __name__ == "__main__":
    README.write_text(with_measured(README.read_text()))
