"""Pictures of a report, where Matplotlib is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.report.page import rows_of

Row = dict[str, Any]


def draw(report: Row, out: Path) -> list[str] | str:
    """Draw what the report has rows for.

    Args:
        report: As `report.json` holds it.
        out: Folder of the pictures.

    Returns:
        Their file names, or a note why there are none.
    """
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return "No pictures: Matplotlib is not installed."

    drawn: list[str] = []

    def save(name: str) -> None:
        plt.tight_layout()
        plt.savefig(out / name, dpi=120)
        plt.close()
        drawn.append(name)

    title = f"{report['device']}{', scaled down' if report['small'] else ''}"
    steps = [row for row in rows_of(report, "steps") if "clips/s" in row]
    if steps:
        plt.figure(figsize=(7, 0.45 * len(steps) + 1.2))
        plt.barh([row["row"] for row in steps], [row["clips/s"] for row in steps], color="#4477aa")
        plt.gca().invert_yaxis()
        plt.xlabel("clips/s")
        plt.title(f"training step, {title}")
        save("steps.png")
    passes = [row for row in rows_of(report, "breakdown") if "seconds" in row]
    if passes:
        plt.figure(figsize=(7, 3.2))
        for row in passes:
            milliseconds = [1000 * seconds for seconds in row["seconds"].values()]
            plt.plot(list(row["seconds"]), milliseconds, marker="o", label=row["row"])
        plt.ylabel("ms")
        plt.xticks(rotation=30, ha="right")
        plt.legend()
        plt.title(f"passes of a step, {title}")
        save("passes.png")
    grown = [row for row in rows_of(report, "growth") if "ms" in row]
    if grown:
        kinds = list(dict.fromkeys(row["what"] for row in grown))
        _, axes = plt.subplots(1, len(kinds), figsize=(3.4 * len(kinds), 3), squeeze=False)
        for axis, what in zip(axes[0], kinds, strict=True):
            mine = [row for row in grown if row["what"] == what]
            axis.plot([row["value"] for row in mine], [row["ms"] for row in mine], marker="o")
            axis.set(xlabel=what, ylabel="ms")
            axis.set_ylim(0, 1.08 * max(row["ms"] for row in mine))
        plt.suptitle(f"cost of a step, {title}")
        save("growth.png")
    runs = [row for row in rows_of(report, "long run") if "chunks_ms" in row]
    if runs:
        plt.figure(figsize=(7, 3))
        for row in runs:
            size = row["steps"] / len(row["chunks_ms"])
            at = [size * (i + 1) for i in range(len(row["chunks_ms"]))]
            plt.plot(at, row["chunks_ms"], label=row["row"])
        plt.ylim(0, 1.08 * max(max(row["chunks_ms"]) for row in runs))
        plt.xlabel("step")
        plt.ylabel("ms per step")
        plt.legend()
        plt.title(f"consecutive steps, {title}")
        save("long_run.png")
    return drawn
