# SPDX-License-Identifier: Apache-2.0
"""Clips as points on a plane, coloured by class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sjepa_fast.viz.figure import new_figure, plotted

# Ten colours times six shapes; further classes are not told apart.
SHAPES = "os^Dv*"
MOST_CLASSES = 10 * len(SHAPES)


def projection_figure(
    points_N2: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    class_names: Sequence[str],
    title: str,
    axis_names: tuple[str, str],
) -> Figure:
    """Draw a point for each clip, with a legend of the classes that are there.

    A label below 0 is none; clips without a label, and classes beyond 60, are grey.
    """
    present = [int(label) for label in np.unique(labels_N) if label >= 0]
    named, others = present[:MOST_CLASSES], present[MOST_CLASSES:]
    columns = -(-len(named) // 20)
    longest = max((len(plotted(class_names[label], 28)) for label in named), default=0)
    figure = new_figure(6.2 + columns * (0.5 + 0.062 * longest), 5.4)
    axes = figure.add_subplot()
    size = 26 if len(labels_N) <= 500 else 12
    grey = np.isin(labels_N, others) | (labels_N < 0)
    if grey.any():
        text = "further classes" if others else "without a label"
        x, y = points_N2[grey].T
        axes.scatter(x, y, s=size, c="#b5bac2", marker=".", label=text)
    for place, label in enumerate(named):
        x, y = points_N2[labels_N == label].T
        name = plotted(class_names[label], 28)
        color, shape = colormaps["tab10"](place % 10), SHAPES[place // 10]
        axes.scatter(x, y, s=size, color=color, marker=shape, alpha=0.8, lw=0, label=name)
    axes.set_title(plotted(title, 90), fontsize=10, wrap=True)
    axes.set_xlabel(axis_names[0], fontsize=9)
    axes.set_ylabel(axis_names[1], fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    if named or grey.any():
        legend = {"fontsize": 7, "frameon": False, "ncols": max(1, columns)}
        figure.legend(loc="outside right upper", **legend)
    return figure
