"""Training curves from a run's metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from sjepa_fast.viz.figure import new_figure, save_figure

PANELS = (
    ("loss", "loss (not comparable between runs)"),
    ("knn", "online kNN, top-1 %"),
    ("effective_rank", "effective rank of targets"),
    ("channel_std", "mean channel deviation of targets"),
    ("lr", "learning rate"),
    ("momentum", "EMA momentum"),
)


def plot_curves(rows: Sequence[dict[str, float]], out: Path) -> None:
    """Draw a panel for each metric in the rows, which also have `step`, and write the PNG `out`.

    A metric that was not finite is None in its row, and no point.
    """
    shown = [(key, title) for key, title in PANELS if any(row.get(key) is not None for row in rows)]
    columns = min(3, max(1, len(shown)))
    lines = max(1, -(-len(shown) // columns))
    figure = new_figure(3.8 * columns, 2.7 * lines)
    for place, (key, title) in enumerate(shown, start=1):
        points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        axes = figure.add_subplot(lines, columns, place)
        marker = "o" if len(points) <= 40 else None
        axes.plot(*zip(*points, strict=True), color="#1f5fa8", marker=marker, markersize=3)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, out)
