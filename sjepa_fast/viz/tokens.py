# SPDX-License-Identifier: Apache-2.0
"""Draws a number of each token of a clip: on poses over time, and as a map of joints and segments.

A mask, a loss and attention are such numbers. Shapes: M bodies, T frames, V joints, S segments,
C coordinates (y up), l frames per segment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize, to_rgba
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from sjepa_fast.joint_map import spoken
from sjepa_fast.skeletons import SkeletonLayout
from sjepa_fast.viz.figure import Movie, new_figure, plotted
from sjepa_fast.viz.pose import Numbers, Pose, Stage, even_frames, mark, side_colors, side_legend

VISIBLE, MASKED, RING = "#6a3d9a", "#c9ced6", "#99a3b0"


@dataclass(frozen=True)
class TokenMap:
    """Numbers of the tokens of one clip."""

    clip_MTVC: Numbers
    values_MSV: Numbers
    """NaN where a token has none, such as the loss of a visible one."""
    layout: SkeletonLayout
    title: str
    label: str = ""
    """What the numbers are, with their unit; empty for a mask."""
    nothing: str = ""
    """What a token without a number is."""

    @property
    def is_mask(self) -> bool:
        """Whether the numbers are 1 for masked and 0 for visible tokens."""
        return not self.label

    @property
    def segment_length(self) -> int:
        """L."""
        return int(self.clip_MTVC.shape[1] // self.values_MSV.shape[1])

    def colors(self) -> tuple[Colormap, Normalize]:
        """Return colours and their range; a mask has two."""
        if self.is_mask:
            return ListedColormap([VISIBLE, MASKED]), Normalize(0, 1)
        found = self.values_MSV[np.isfinite(self.values_MSV)]
        low, high = np.percentile(found, (0, 99)) if found.size else (0.0, 1.0)
        missing = colormaps["viridis"].with_extremes(bad="#e4e7eb")
        return missing, Normalize(low, high if high > low else low + 1)


class _Tokens:
    """A pose whose joints show the numbers of its segment."""

    def __init__(self, axes: Axes, of: TokenMap, stage: Stage) -> None:
        self.axes, self.of, self.stage = axes, of, stage
        colors, norm = of.colors()
        self.map = ScalarMappable(norm, colors)
        self.pose = Pose(axes, of.layout, len(of.clip_MTVC))

    def show(self, frame: int) -> None:
        of = self.of
        values = of.values_MSV[:, frame // of.segment_length].ravel()
        missing = ~np.isfinite(values)
        faces = self.map.to_rgba(np.ma.masked_invalid(values))
        edges = np.where(missing[:, None], to_rgba(RING), faces)
        small = missing
        if of.is_mask:
            small = values > 0.5
            edges[small] = to_rgba(RING)
        faces[small] = (1, 1, 1, 1)
        sizes = np.where(small, 9.0, 26.0)
        self.pose.show(of.clip_MTVC[:, frame], faces, edges, sizes)
        self.stage.frame(self.axes, frame)


def _draw_maps(part: Figure | SubFigure, of: TokenMap) -> list[Axes]:
    bodies, segments, joints = of.values_MSV.shape
    colors, norm = of.colors()
    drawn = []
    for body, axes in enumerate(part.subplots(1, bodies, squeeze=False).flat):
        values = np.ma.masked_invalid(of.values_MSV[body].T)
        axes.pcolormesh(values, cmap=colors, norm=norm, edgecolors="white", linewidth=0.4)
        axes.invert_yaxis()
        # Of more than that no name could be read.
        if joints <= 60:
            names = [plotted(spoken(name), 24) for name in of.layout.joints]
            axes.set_yticks(np.arange(joints) + 0.5, names if body == 0 else [], fontsize=6)
            for text, color in zip(axes.get_yticklabels(), side_colors(of.layout), strict=False):
                text.set_color(color)
        every = -(-segments // 30)
        shown = np.arange(0, segments, every)
        axes.set_xticks(shown + 0.5, [str(s + 1) for s in shown], fontsize=6)
        person = f" (person {body + 1})" if bodies > 1 else ""
        axes.set_xlabel(f"segment of {of.segment_length} frames{person}", fontsize=8)
        axes.tick_params(length=0)
        drawn.append(axes)
    if not of.is_mask:
        bar = part.colorbar(ScalarMappable(norm, colors), ax=drawn, fraction=0.05, pad=0.01)
        bar.set_label(of.label, fontsize=8)
        bar.ax.tick_params(labelsize=7)
    return drawn


def _explain(figure: Figure, of: TokenMap) -> None:
    if of.is_mask:
        seen = mark("visible to the encoder", VISIBLE, VISIBLE, 6)
        side_legend(figure, seen, mark("masked", "white", RING, 4))
    elif of.nothing and not np.isfinite(of.values_MSV).all():
        side_legend(figure, mark(of.nothing, "white", RING, 4))
    else:
        side_legend(figure)


def token_figure(of: TokenMap) -> Figure:
    """Draw up to eight poses over time with the tokens' numbers, and the map below."""
    segments, joints = of.values_MSV.shape[1:]
    chosen = even_frames(segments, 8)
    figure = new_figure(11, 3.6 + 0.15 * min(joints, 60))
    figure.suptitle(plotted(of.title, 110), fontsize=11)
    heights = [2.4, 0.6 + 0.15 * min(joints, 60)]
    top, below = figure.subfigures(2, 1, height_ratios=heights, squeeze=False).flat
    stage = Stage(of.clip_MTVC)
    for axes, segment in zip(top.subplots(1, len(chosen), squeeze=False).flat, chosen, strict=True):
        _Tokens(axes, of, stage).show(segment * of.segment_length + of.segment_length // 2)
        axes.set_title(f"segment {segment + 1}", fontsize=8)
    _draw_maps(below, of)
    _explain(figure, of)
    return figure


def token_movie(of: TokenMap, rate: float = 15.0) -> Movie:
    """Let the clip move beside the map, on which a frame marks the segment that is shown."""
    joints = of.values_MSV.shape[2]
    figure = new_figure(10, 1.4 + 0.15 * min(joints, 60))
    figure.suptitle(plotted(of.title, 100), fontsize=10)
    left, right = figure.subfigures(1, 2, width_ratios=[1, 2], squeeze=False).flat
    tokens = _Tokens(left.subplots(), of, Stage(of.clip_MTVC))
    spans = []
    for axes in _draw_maps(right, of):
        spans.append(axes.axvspan(0, 1, fill=False, edgecolor="black", linewidth=1.6))
    _explain(figure, of)
    frames = even_frames(of.clip_MTVC.shape[1], 150)

    def show(at: int) -> None:
        tokens.show(frames[at])
        for span in spans:
            span.set_x(frames[at] // of.segment_length)

    return Movie(figure, len(frames), show, rate)


def masked_tokens(
    clip_MTVC: Numbers, masked_MSV: NDArray[np.bool_], layout: SkeletonLayout, title: str
) -> TokenMap:
    """Return the map of a mask, true where a token is hidden from the view encoder."""
    return TokenMap(clip_MTVC, masked_MSV.astype(np.float32), layout, title)
