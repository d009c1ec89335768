# SPDX-License-Identifier: Apache-2.0
"""Draws clips: as strips of poses over time, one below the other, or moving side by side.

Shapes: M bodies, T frames, V joints, C coordinates (y up).
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.quiver import Quiver
from numpy.typing import NDArray

from sjepa_fast.skeletons import SkeletonLayout
from sjepa_fast.viz.figure import Movie, new_figure, plotted
from sjepa_fast.viz.pose import Numbers, Pose, Stage, even_frames, mark, side_legend

ARROW, HOLLOW = "#b2182b", "#9aa3af"
MOST_FRAMES = 150


@dataclass(frozen=True)
class Track:
    """A clip to be drawn."""

    title: str
    clip_MTVC: Numbers
    hollow_MTV: NDArray[np.bool_] | None = None
    """Joints that are drawn as rings, such as predicted ones."""
    arrows_MTVC: Numbers | None = None
    """Arrows that begin at the joints, in the clip's unit; 0 is none."""
    color: str = "black"
    """Of the title."""
    stage: Stage | None = None
    """Where it stands; its own, if not given."""


class _Actor:
    """A track in axes of its own."""

    def __init__(self, axes: Axes, track: Track, layout: SkeletonLayout) -> None:
        self.axes, self.track = axes, track
        self.stage = track.stage or Stage(track.clip_MTVC)
        bodies = len(track.clip_MTVC)
        self.pose = Pose(axes, layout, bodies, size=7 if track.hollow_MTV is None else 16)
        self.quiver: Quiver | None = None
        if track.arrows_MTVC is not None:
            zero = np.zeros(bodies * layout.num_joints)
            self.quiver = axes.quiver(
                *(zero, zero, zero, zero),
                color=ARROW,
                angles="xy",
                scale_units="xy",
                scale=1,
                width=0.009,
                zorder=3,
                clip_on=False,
            )

    def show(self, frame: int) -> None:
        track, pose_MVC = self.track, self.track.clip_MTVC[:, frame]
        faces: Any = None
        edges: Any = None
        if track.hollow_MTV is not None:
            hollow = track.hollow_MTV[:, frame].ravel()
            faces = ["white" if h else own for h, own in zip(hollow, self.pose.own, strict=True)]
            edges = self.pose.own
        self.pose.show(pose_MVC, faces, edges)
        if self.quiver is not None and track.arrows_MTVC is not None:
            x, y = track.arrows_MTVC[:, frame, :, :2].reshape(-1, 2).T
            self.quiver.set_offsets(pose_MVC[..., :2].reshape(-1, 2))
            self.quiver.set_UVC(x, y)
        self.stage.frame(self.axes, frame)


def _explained(tracks: Sequence[Track], hollow: str) -> list[Line2D]:
    marks = []
    if any(track.hollow_MTV is not None for track in tracks):
        marks.append(mark(hollow, "white", "black", 5))
    return marks


def clip_strips(
    tracks: Sequence[Track],
    layout: SkeletonLayout,
    title: str,
    *,
    hollow: str = "hidden joint",
    poses: int = 8,
) -> Figure:
    """Draw each track as a row of poses, evenly from its first frame to its last.

    `hollow` says what joints drawn as rings are.
    """
    poses = min(poses, max(track.clip_MTVC.shape[1] for track in tracks))
    stages = [track.stage or Stage(track.clip_MTVC) for track in tracks]
    # Two persons side by side are wider than high.
    slim = max(float(stage.reach_2[0] / stage.reach_2[1]) for stage in stages)
    wide = 11 / poses
    tall = min(3.2, max(1.1, wide / max(slim, 0.35)))
    figure = new_figure(11, 0.9 + (tall + 0.25) * len(tracks))
    figure.suptitle(plotted(title, 110), fontsize=11)
    rows = figure.subfigures(len(tracks), 1, squeeze=False)[:, 0]
    for part, track in zip(rows, tracks, strict=True):
        part.suptitle(plotted(track.title, 110), fontsize=9, color=track.color)
        frames = even_frames(track.clip_MTVC.shape[1], poses)
        for axes, frame in zip(part.subplots(1, poses, squeeze=False).flat, frames, strict=False):
            _Actor(axes, track, layout).show(frame)
            axes.set_title(f"frame {frame + 1}", fontsize=7, color="#555555", y=-0.06)
        for axes in part.axes[len(frames) :]:
            axes.set_axis_off()
    side_legend(figure, *_explained(tracks, hollow))
    return figure


def clip_movie(
    tracks: Sequence[Track],
    layout: SkeletonLayout,
    title: str,
    *,
    hollow: str = "hidden joint",
    rate: float = 15.0,
    columns: int = 4,
) -> Movie:
    """Let tracks move side by side, each from its first frame to its last in the same time.

    The movie has as many frames as the longest track, at most 150.
    """
    columns = min(columns, len(tracks))
    lines = -(-len(tracks) // columns)
    width = max(6.5, 2.9 * columns)
    figure = new_figure(width, 3.1 * lines + 0.9)
    # Fifteen letters take an inch.
    figure.suptitle(plotted(title, int(15 * width)), fontsize=9)
    actors = []
    for place, track in enumerate(tracks, start=1):
        axes = figure.add_subplot(lines, columns, place)
        lines_of = textwrap.fill(plotted(track.title, 90), 36)
        axes.set_title(lines_of, fontsize=8, color=track.color)
        actors.append(_Actor(axes, track, layout))
    side_legend(figure, *_explained(tracks, hollow))
    count = max(len(even_frames(t.clip_MTVC.shape[1], MOST_FRAMES)) for t in tracks)

    def show(at: int) -> None:
        for actor in actors:
            last = actor.track.clip_MTVC.shape[1] - 1
            actor.show(round(at * last / max(1, count - 1)))

    return Movie(figure, count, show, rate)
