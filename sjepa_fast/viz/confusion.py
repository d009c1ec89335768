# SPDX-License-Identifier: Apache-2.0
"""Confusion matrix as a picture."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from sjepa_fast.viz.figure import new_figure, plotted


def confusion_figure(matrix_CC: Tensor, class_names: Sequence[str], title: str) -> Figure:
    """Draw row-normalised percentages; numbers are written where there are few classes.

    Rows are true classes; those without a test clip are grey.
    """
    counts = matrix_CC.double().cpu()
    # Without a clip of a class its row is 0 / 0, which is drawn grey.
    share = (100 * counts / counts.sum(dim=1, keepdim=True)).numpy()
    classes = len(class_names)
    side = max(4.5, min(18.0, 1.8 + 0.42 * classes))
    figure = new_figure(side + 1.2, side)
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap=colormaps["Blues"].with_extremes(bad="0.85"), vmin=0, vmax=100)
    size = 9 if classes <= 20 else max(4, 9 - classes // 20)
    # Of more than that no name could be read, and they take most of the time.
    if classes <= 400:
        shown = [plotted(name) for name in class_names]
        axes.set_xticks(range(classes), shown, rotation=60, ha="right", fontsize=size)
        axes.set_yticks(range(classes), shown, fontsize=size)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(plotted(title, 120), fontsize=10)
    if classes <= 20:
        for row in range(classes):
            for column in range(classes):
                if share[row, column] >= 0.5:
                    color = "white" if share[row, column] > 55 else "black"
                    text = f"{share[row, column]:.0f}"
                    axes.text(column, row, text, ha="center", va="center", color=color, fontsize=7)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class (%)")
    return figure
