# SPDX-License-Identifier: Apache-2.0
"""Draws the bodies of one moment from the front, left and right limbs in colours of their own.

Shapes: M bodies, T frames, V joints, C coordinates (y up).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from sjepa_fast.skeletons import SkeletonLayout

# Told apart by those who see no red and green, too.
SIDES = {"left": "#2166ac", "right": "#e08214", "middle": "#7a8594"}
Numbers = NDArray[np.floating[Any]]


def side_colors(layout: SkeletonLayout) -> list[str]:
    """Return the colour of each joint: of the person's left, right or middle."""
    colors = [SIDES["middle"]] * layout.num_joints
    for left, right in layout.swaps:
        colors[left], colors[right] = SIDES["left"], SIDES["right"]
    return colors


def mark(label: str, face: str, edge: str, size: float) -> Line2D:
    """Return the mark of a legend for joints that are drawn in their own way."""
    return Line2D([], [], label=label, marker="o", ls="", mfc=face, mec=edge, ms=size)


def side_legend(figure: Figure, *others: Line2D) -> None:
    """Say below a figure which colour is which side, and what else there is."""
    sides = [Line2D([], [], color=color, lw=2.5, label=name) for name, color in SIDES.items()]
    sides[0].set_label("the person's left")
    handles = [*sides, *others]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False
    )


def turned(x: Numbers, degrees: float) -> Numbers:
    """Turn points or motions, (..., 3), about the vertical, to be seen from another side."""
    angle = np.deg2rad(degrees)
    sine, cosine = np.sin(angle), np.cos(angle)
    turn = np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]])
    return np.asarray(x @ turn, dtype=np.float32)


class Stage:
    """Where the poses of a clip stand: each about its own middle, so that walking takes no space.

    Another clip, such as a predicted one, can stand there too: it gets room, up to half of what the
    first one takes.
    """

    def __init__(self, clip_MTVC: Numbers, other_MTVC: Numbers | None = None) -> None:
        flat_MTV2 = clip_MTVC[..., :2]
        self.middle_T2 = (flat_MTV2.min(axis=(0, 2)) + flat_MTV2.max(axis=(0, 2))) / 2
        self.reach_2 = np.maximum(self._reach(clip_MTVC), 1e-3)
        if other_MTVC is not None:
            self.reach_2 = np.clip(self._reach(other_MTVC), self.reach_2, 1.5 * self.reach_2)

    def _reach(self, clip_MTVC: Numbers) -> Numbers:
        offset = np.abs(clip_MTVC[..., :2] - self.middle_T2[:, None])
        return np.asarray(offset.max(axis=(0, 1, 2)) * 1.15)

    def frame(self, axes: Axes, at: int) -> None:
        """Let the axes show what is around the middle of a frame."""
        (x, y), (wide, high) = self.middle_T2[at], self.reach_2
        axes.set_xlim(x - wide, x + wide)
        axes.set_ylim(y - high, y + high)


class Pose:
    """The bodies of one moment in axes of their own; `show` changes it to another moment."""

    def __init__(self, axes: Axes, layout: SkeletonLayout, bodies: int, size: float = 7.0) -> None:
        self.bones = np.array(layout.bones).reshape(-1, 2)
        sides = side_colors(layout)
        colors = [sides[child] for child, _ in layout.bones] * bodies
        self.lines = LineCollection([], colors=colors, linewidths=1.6, zorder=1, clip_on=False)
        self.own = np.array(sides * bodies)
        self.size = np.full(len(self.own), size)
        axes.add_collection(self.lines, autolim=False)
        start = np.zeros(len(self.own))
        self.dots = axes.scatter(
            start, start, s=self.size, c=self.own, linewidths=0.7, zorder=2, clip_on=False
        )
        axes.set_aspect("equal")
        axes.set_axis_off()

    def show(
        self,
        pose_MVC: Numbers,
        faces: Any = None,
        edges: Any = None,
        sizes_MV: Numbers | None = None,
    ) -> None:
        """Draw a pose; colours (M*V, 4) and sizes of the joints are the side's own if not given."""
        flat_MV2 = pose_MVC[..., :2]
        self.lines.set_segments(list(flat_MV2[:, self.bones].reshape(-1, 2, 2)))
        self.dots.set_offsets(flat_MV2.reshape(-1, 2))
        self.dots.set_facecolor(self.own.tolist() if faces is None else faces)
        self.dots.set_edgecolor("face" if edges is None else edges)
        self.dots.set_sizes(self.size if sizes_MV is None else np.ravel(sizes_MV))


def even_frames(frames: int, most: int) -> list[int]:
    """Return at most so many frames, evenly from the first to the last."""
    chosen = np.linspace(0, frames - 1, min(frames, most)).round().astype(int)
    return [int(frame) for frame in chosen]
