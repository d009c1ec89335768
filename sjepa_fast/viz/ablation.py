# SPDX-License-Identifier: Apache-2.0
"""Scores and step times over the values of one setting."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from sjepa_fast.viz.figure import new_figure, plotted

PANELS = (
    (
        "Nearest-neighbour accuracy (%)",
        (("knn_before", "before training", "#9a9a9a"), ("knn_after", "after training", "#1f5fa8")),
    ),
    ("Time per step (ms)", (("ms_per_step", "", "#1f5fa8"),)),
)


def ablation_figure(axis: str, cells: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draw a point for each run of each value, and a line through the means."""
    figure = new_figure(max(7.0, 1.2 * len(cells) + 4), 3.2)
    places = range(len(cells))
    for number, (title, lines) in enumerate(PANELS, start=1):
        axes = figure.add_subplot(1, len(PANELS), number)
        for key, label, color in lines:
            means = [statistics.mean(r[key] for r in runs) for runs in cells.values()]
            # Whole points also where one lies on the frame, as 0 and 100 % do.
            points = [
                (place, run[key])
                for place, runs in zip(places, cells.values(), strict=True)
                for run in runs
            ]
            axes.plot(places, means, color=color, label=label, clip_on=False, zorder=3)
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, s=16, color=color, clip_on=False, zorder=3)
        # Evenly spaced whatever the values: words have no distance, and ratios would crowd.
        axes.set_xticks(places, [plotted(text) for text in cells])
        axes.set_xlim(-0.4, len(cells) - 0.6)
        axes.margins(y=0.12)
        axes.set_xlabel(axis, fontsize=9)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3, axis="y")
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        if len(lines) > 1:
            axes.legend(fontsize=8, frameon=False)
        else:
            axes.set_ylim(bottom=0)
    return figure
