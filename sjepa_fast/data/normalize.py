# SPDX-License-Identifier: Apache-2.0
"""Clip normalisations applied once when a store is loaded: centring, heading and body size.

All are options, off in the papers' presets; with them small sets can be learned in minutes.
Shapes: M bodies, T frames, V joints, 3 coordinates (metres, y up).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.skeletons import SkeletonLayout

Clip = NDArray[np.float32]


def center_first_frame(clip_MTVC: Clip, layout: SkeletonLayout) -> Clip:
    """Subtract the first body's root joint of the first frame from every joint."""
    return np.asarray(clip_MTVC - clip_MTVC[0, 0, layout.center], dtype=np.float32)


def heading(clip_MTVC: Clip, layout: SkeletonLayout) -> float:
    """Angle in radians of the first body's left-to-right direction in the horizontal plane.

    The direction is shoulders plus hips, averaged over the first eighth of the clip, seen from
    above: atan2(z, x) of (right - left).
    """
    first = clip_MTVC[0, : max(1, clip_MTVC.shape[1] // 8)]
    across = np.zeros(3, dtype=np.float64)
    for left, right in (layout.shoulders, layout.hips):
        across += (first[:, right] - first[:, left]).mean(axis=0)
    return float(np.arctan2(across[2], across[0]))


def align_heading(clip_MTVC: Clip, layout: SkeletonLayout) -> Clip:
    """Turn all bodies about the vertical so that the first body's left-to-right axis is +x."""
    angle = heading(clip_MTVC, layout)
    cosine, sine = np.cos(angle), np.sin(angle)
    # Rows are right-multiplied: (x, z) -> (x cos + z sin, z cos - x sin).
    turn = np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]], dtype=np.float32)
    return np.asarray(clip_MTVC @ turn, dtype=np.float32)


def rotation_between(start: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.float64]:
    """The smallest rotation that turns direction `start` into `end`, for column vectors (3, 3).

    The identity where a direction has no length; half a turn where they are opposite.
    """
    lengths = np.linalg.norm(start) * np.linalg.norm(end)
    if lengths < 1e-12:
        return np.eye(3)
    axis, cosine = np.cross(start, end) / lengths, float(np.dot(start, end) / lengths)
    if cosine < -1 + 1e-9:
        across = np.cross(start, np.eye(3)[np.argmin(np.abs(start))])
        across /= np.linalg.norm(across)
        return np.asarray(2 * np.outer(across, across) - np.eye(3))
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(np.eye(3) + cross + cross @ cross / (1 + cosine))


def joint_above_root(layout: SkeletonLayout) -> int:
    """The joint next to the root on the way up the spine."""
    # Roots differ between layouts: NTU's tree hangs from mid-shoulder, and joint 1 is below it.
    if layout.parents[layout.center] != layout.center:
        return layout.parents[layout.center]
    above = layout.spine_top
    while layout.parents[above] not in (above, layout.center):
        above = layout.parents[above]
    return above


def align_spine(clip_MTVC: Clip, layout: SkeletonLayout) -> Clip:
    """Turn all bodies: in the first body's first frame the spine points up, the shoulders to +x.

    Method 1.4, from the root to the joint above it and from the left shoulder to the right one; up
    is y here and z in the authors' code, which differs by one rotation of all clips. The shoulders
    are turned last, which may tilt the spine a little.
    """
    first = clip_MTVC[0, 0].astype(np.float64)
    above = joint_above_root(layout)
    left, right = layout.shoulders
    up = rotation_between(first[above] - first[layout.center], np.array([0.0, 1.0, 0.0]))
    side = rotation_between(up @ (first[right] - first[left]), np.array([1.0, 0.0, 0.0]))
    return np.asarray(clip_MTVC @ (side @ up).T, dtype=np.float32)


def body_size(clip_MTVC: Clip, layout: SkeletonLayout) -> float:
    """Root-mean-square distance in metres of the joints from the first body's own root."""
    offset = clip_MTVC[0] - clip_MTVC[0, :, layout.center : layout.center + 1]
    return float(np.sqrt((offset.astype(np.float64) ** 2).sum(axis=-1).mean()))


def normalize_clip(
    clip_MTVC: Clip,
    layout: SkeletonLayout,
    *,
    center: bool,
    align_yaw: bool,
    size: bool,
    spine: bool = False,
) -> Clip:
    """Apply the chosen normalisations in the order center, spine, heading, size.

    Returns the clip as float32, same shape; bodies that are all zero stay zero.
    """
    present = (clip_MTVC != 0).any(axis=(1, 2, 3))
    out = np.asarray(clip_MTVC, dtype=np.float32)
    if center:
        out = center_first_frame(out, layout)
    if spine:
        out = align_spine(out, layout)
    if align_yaw:
        out = align_heading(out, layout)
    if size:
        out = out / np.float32(max(body_size(out, layout), 1e-6))
    return np.where(present[:, None, None, None], out, np.float32(0))
