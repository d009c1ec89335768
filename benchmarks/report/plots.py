"""Pictures of a report, where Matplotlib is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.report.page import rows_of

Row = dict[str, Any]


def draw(report: Row, out: Path) -> list[str] | str:
    """Draw what the report has rows for; return the pictures' names, or why there are none."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return "No pictures: Matplotlib is not installed."

    drawn: list[str] = []
    place = f"{report['device']}{', scaled down' if report['small'] else ''}"

    def measured(section: str, key: str) -> list[Row]:
        return [row for row in rows_of(report, section) if key in row]

    def save(name: str, what: str, **axes: str) -> None:
        """Finish a picture of one pair of axes, with its labels, or of several without."""
        (plt.title if axes else plt.suptitle)(f"{what}, {place}")
        if axes:
            plt.gca().set(**axes)
        plt.tight_layout()
        plt.savefig(out / name, dpi=120)
        plt.close()
        drawn.append(name)

    if rows := measured("steps", "clips/s"):
        plt.figure(figsize=(7, 0.45 * len(rows) + 1.2))
        plt.barh([row["row"] for row in rows], [row["clips/s"] for row in rows], color="#4477aa")
        plt.gca().invert_yaxis()
        save("steps.png", "training step", xlabel="clips/s")
    if rows := measured("breakdown", "seconds"):
        plt.figure(figsize=(7, 3.2))
        for row in rows:
            milliseconds = [1000 * seconds for seconds in row["seconds"].values()]
            plt.plot(list(row["seconds"]), milliseconds, marker="o", label=row["row"])
        plt.xticks(rotation=30, ha="right")
        plt.legend()
        save("passes.png", "passes of a step", ylabel="ms")
    if rows := measured("growth", "ms"):
        kinds = list(dict.fromkeys(row["what"] for row in rows))
        _, axes = plt.subplots(1, len(kinds), figsize=(3.4 * len(kinds), 3), squeeze=False)
        for axis, what in zip(axes[0], kinds, strict=True):
            mine = [row for row in rows if row["what"] == what]
            axis.plot([row["value"] for row in mine], [row["ms"] for row in mine], marker="o")
            axis.set(xlabel=what, ylabel="ms", ylim=(0, 1.08 * max(row["ms"] for row in mine)))
        save("growth.png", "cost of a step")
    if rows := measured("long run", "chunks_ms"):
        plt.figure(figsize=(7, 3))
        for row in rows:
            size = row["steps"] / len(row["chunks_ms"])
            at = [size * (i + 1) for i in range(len(row["chunks_ms"]))]
            plt.plot(at, row["chunks_ms"], label=row["row"])
        plt.ylim(0, 1.08 * max(max(row["chunks_ms"]) for row in rows))
        plt.legend()
        save("long_run.png", "consecutive steps", xlabel="step", ylabel="ms per step")
    return drawn
