# SPDX-License-Identifier: Apache-2.0
"""Training curves from runs' metrics, with the scores that a run's own mean little without."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from sjepa_fast.reporting.curves import PANELS, RunCurves
from sjepa_fast.viz.figure import new_figure, plotted

COLORS = ("#1f5fa8", "#d95f02", "#1b7837", "#762a83", "#b2182b", "#4d4d4d")


def curves_figure(runs: Sequence[RunCurves]) -> Figure:
    """Draw a panel for each metric of which a run has two values or more, a line for each run."""
    drawn = {
        key: [run for run in runs if len(run.points(key)) > 1]  # one dot is no curve
        for key, _ in PANELS
    }
    shown = [(key, title) for key, title in PANELS if drawn[key]]
    columns = min(3, max(1, len(shown)))
    lines = max(1, -(-len(shown) // columns))
    figure = new_figure(max(4.5, 3.8 * columns), 2.7 * lines + 0.5)
    colors = {id(run): COLORS[i % len(COLORS)] for i, run in enumerate(runs)}
    if len(runs) == 1:
        figure.suptitle(plotted(runs[0].name, 90), fontsize=11)
    for place, (key, title) in enumerate(shown, start=1):
        axes = figure.add_subplot(lines, columns, place)
        for run in drawn[key]:
            points = run.points(key)
            marker = "o" if len(points) <= 40 else None
            axes.plot(*zip(*points, strict=True), color=colors[id(run)], marker=marker, ms=3)
        if key == "knn":
            _draw_baselines(axes, drawn[key])
        if key == "loss" and len(runs) > 1:
            title += " (not comparable between runs)"
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    if len(runs) > 1:
        lines_of = [Line2D([], [], color=colors[id(r)], label=plotted(r.name)) for r in runs]
        figure.legend(
            handles=lines_of, loc="outside lower center", ncols=4, fontsize=8, frameon=False
        )
    if not shown:
        axes = figure.add_subplot()
        axes.text(0.5, 0.5, "no metric has two values yet", ha="center", fontsize=10)
        axes.set_axis_off()
    return figure


def _draw_baselines(axes: Axes, runs: Sequence[RunCurves]) -> None:
    """Draw a line across for each baseline; runs that share one share its line."""
    styles = {"random encoder": (0, (5, 2)), "raw coordinates": (0, (1, 1.5))}
    levels = dict.fromkeys((of, round(x, 3)) for run in runs for of, x in run.baselines.items())
    for of, level in levels:
        text = f"{of} {level:.1f}"
        axes.axhline(level, color="#555555", lw=1.2, ls=styles.get(of, "-."), label=text)
    if levels:
        axes.legend(fontsize=8, frameon=False)
