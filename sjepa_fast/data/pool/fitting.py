# SPDX-License-Identifier: Apache-2.0
"""Makes a clip of one set fit a pool: its joints, and its frame rate.

Shapes: M bodies, T frames, V joints of the pool, C coordinates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.joint_map import body_part
from sjepa_fast.skeletons import SkeletonLayout

Clip = NDArray[np.float32]


def filled_joints(
    own: SkeletonLayout, pool: SkeletonLayout, rows: tuple[tuple[int, ...], ...]
) -> list[str]:
    """Say which joints of the pool stand for a body part that a set's own layout lacks.

    `rows` is `map_joints(own, pool)`. Returns equations such as wrist_left = hand_left.
    """
    if own.joints == pool.joints:
        return []
    parts = {body_part(joint) for joint in own.joints}
    return [
        f"{joint} = {' + '.join(own.joints[row] for row in used)}"
        for joint, used in zip(pool.joints, rows, strict=True)
        if body_part(joint) not in parts
    ]


def refit_joints(clip_MTVC: Clip, rows: tuple[tuple[int, ...], ...]) -> Clip:
    """Return the pool's joints: of each, the mean of the joints of the clip in `rows`."""
    joints = [clip_MTVC[:, :, list(used)].mean(axis=2) for used in rows]
    return np.stack(joints, axis=2).astype(np.float32)


def resample(clip_MTVC: Clip, fps: float, wanted: float) -> Clip:
    """Take frames at another rate, linearly between the two beside each, from the first on.

    A body that is absent (all zero) in one of the two is taken from the nearer one as it is.
    Returns at least one frame.
    """
    length = clip_MTVC.shape[1]
    count = max(1, round(length * wanted / fps))
    at = np.minimum(np.arange(count) * (fps / wanted), length - 1)
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, length - 1)
    share = (at - low).astype(np.float32)[:, None, None]
    before, after = clip_MTVC[:, low], clip_MTVC[:, high]
    absent = ~((before != 0).any(axis=(2, 3)) & (after != 0).any(axis=(2, 3)))
    nearer = np.where(share < 0.5, before, after)
    between = before + (after - before) * share
    return np.where(absent[..., None, None], nearer, between).astype(np.float32)
