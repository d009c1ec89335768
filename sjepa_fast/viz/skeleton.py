"""Draws a clip and its mask as one picture.

Shapes: M bodies, T frames, V joints, S segments, l frames per segment.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from numpy.typing import NDArray

from sjepa_fast.skeletons import SkeletonLayout
from sjepa_fast.viz.figure import new_figure, plotted, save_figure

VISIBLE, MASKED = "#d1495b", "#c9ced6"


def _draw_pose(
    axes: Axes, pose_MV3: NDArray[np.float32], layout: SkeletonLayout, masked_MV: NDArray[np.bool_]
) -> None:
    for pose, masked in zip(pose_MV3, masked_MV, strict=True):
        for child, parent in layout.bones:
            ends = pose[[child, parent]]
            axes.plot(ends[:, 0], ends[:, 1], color="#7a8594", linewidth=1.0, zorder=1)
        hidden, seen = pose[masked], pose[~masked]
        axes.scatter(
            hidden[:, 0], hidden[:, 1], s=9, facecolors="white", edgecolors="#9aa3af", zorder=2
        )
        axes.scatter(seen[:, 0], seen[:, 1], s=22, color=VISIBLE, zorder=3)


def plot_clip_mask(
    clip_MTVC: NDArray[np.float32],
    layout: SkeletonLayout,
    masked_MSV: NDArray[np.bool_],
    out: Path,
    title: str,
    segment_length: int,
) -> None:
    """Draw up to eight poses over time with visible joints filled, and the mask map below.

    The clip (y up) is drawn from the front; a token is hidden where `masked_MSV` is true.
    """
    bodies, segments, joints = masked_MSV.shape
    poses = min(8, segments)
    chosen = np.linspace(0, segments - 1, poses).round().astype(int)
    figure = new_figure(11, 3.2 + 0.17 * joints)
    grid = figure.add_gridspec(2, poses, height_ratios=[2.4, 0.17 * joints])
    figure.suptitle(f"{plotted(title, 90)}; filled: what the view encoder sees", fontsize=11)
    # Each pose is drawn about its own center, all at one scale, so that walking takes no space.
    middle_T2 = clip_MTVC[..., :2].mean(axis=(0, 2))
    reach = np.abs(clip_MTVC[..., :2] - middle_T2[:, None]).max(axis=(0, 1, 2)) * 1.1
    for column, segment in enumerate(chosen):
        axes = figure.add_subplot(grid[0, column])
        frame = segment * segment_length + segment_length // 2
        _draw_pose(axes, clip_MTVC[:, frame], layout, masked_MSV[:, segment])
        middle = middle_T2[frame]
        axes.set_xlim(middle[0] - reach[0], middle[0] + reach[0])
        axes.set_ylim(middle[1] - reach[1], middle[1] + reach[1])
        axes.set_aspect("equal")
        axes.set_axis_off()
        axes.set_title(f"segment {segment}", fontsize=8)
    columns = grid[1, :].subgridspec(1, bodies)
    for body in range(bodies):
        axes = figure.add_subplot(columns[0, body])
        colors = ListedColormap([VISIBLE, MASKED])
        axes.pcolormesh(
            masked_MSV[body].T.astype(int), cmap=colors, vmin=0, vmax=1, edgecolors="white"
        )
        axes.invert_yaxis()
        axes.set_yticks(np.arange(joints) + 0.5, layout.joints if body == 0 else [], fontsize=6)
        axes.set_xticks(np.arange(segments) + 0.5, [str(s) for s in range(segments)], fontsize=6)
        axes.set_xlabel(f"segment (body {body + 1})", fontsize=8)
        axes.tick_params(length=0)
    save_figure(figure, out)
