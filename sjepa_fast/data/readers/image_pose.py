# SPDX-License-Identifier: Apache-2.0
"""Poses estimated from images: links people over frames and scales 2-D joints to metres.

All of it is our choice. A store holds three coordinates in metres with y up, so image poses get
z = 0. The confidence is not stored in z, because views rotate clips in space and would mix it with
x and y; it is only used to find joints that were not seen.

Shapes: M bodies, T frames, V joints; a pose (V, 4) is x, y, z, confidence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.data.clip_table import MOST_BODIES
from sjepa_fast.data.readers.record import MAX_NUMBERS
from sjepa_fast.opening import Unreadable
from sjepa_fast.skeletons import SkeletonLayout

Array = NDArray[np.float64]

# Below this a joint was not seen.
MIN_CONFIDENCE = 0.1
# Length given to the torso (mid-shoulders to mid-hips), so that image poses are about metric.
TORSO_METRES = 0.5
MAX_BODIES = 2
# Pairs of a person and an earlier one; some seconds.
MOST_COMPARED = 2**21


@dataclass(frozen=True)
class Person:
    """One detected person in one frame."""

    pose_V4: Array  # x, y, z, confidence of each joint
    track: int | None = None  # identity over frames where the detector gave one, else None


def _gaps(pose_V4: Array, last_KV4: Array) -> Array:
    """Mean distance to each of K last poses of the joints seen in both, in heights of the person.

    Infinite where there are none.
    """
    seen_KV = last_KV4[..., 3] >= MIN_CONFIDENCE
    both_KV = seen_KV & (pose_V4[:, 3] >= MIN_CONFIDENCE)
    with np.errstate(all="ignore"):  # poses may hold NaN, and nothing may be seen
        apart_KV = np.linalg.norm(pose_V4[:, :3] - last_KV4[..., :3], axis=2)
        apart_K = np.where(both_KV, apart_KV, 0).sum(axis=1) / both_KV.sum(axis=1)
        there = seen_KV[..., None]
        most = np.where(there, last_KV4[..., :3], -np.inf).max(axis=1)
        least = np.where(there, last_KV4[..., :3], np.inf).min(axis=1)
        gap_K = apart_K / np.maximum(np.linalg.norm(most - least, axis=1), 1e-9)
    return np.where(both_KV.any(axis=1), gap_K, np.inf)


def link_bodies(frames: list[list[Person]], most: int = MAX_BODIES) -> Array:
    """Follow people from frame to frame and keep the `most` who are seen most.

    With track identities, each identity is one body. Without, a person continues the body whose
    last pose is nearest, if that is within the body's own height; nearest pairs are linked first.
    Frames without anybody are dropped, as in NTU data.

    Returns (M, T, V, 4), the body of highest summed confidence first; zero where a body is absent.
    Raises Unreadable if there are too many people without identities to compare, or frames.
    """
    frames = [people for people in frames if people]
    tracks: list[dict[int, Array]] = []
    last: list[Array] = []  # of each track
    compared = 0
    by_name: dict[int, dict[int, Array]] = {}
    for t, people in enumerate(frames):
        unnamed = []
        for person in people:
            if person.track is None:
                unnamed.append(person.pose_V4)
            elif person.track not in by_name:
                by_name[person.track] = {t: person.pose_V4}
            else:
                by_name[person.track].setdefault(t, person.pose_V4)
        compared += len(unnamed) * len(tracks)
        if compared > MOST_COMPARED:
            raise Unreadable(f"more than {MOST_COMPARED} people to compare; give them track_id")
        before = np.stack(last) if unnamed and last else np.zeros((0, 0, 4))
        gaps = [_gaps(pose, before) for pose in unnamed if last]
        near = [
            (float(gap[j]), i, int(j))
            for i, gap in enumerate(gaps)
            for j in np.nonzero(gap <= 1)[0]
        ]
        placed: set[int] = set()
        for _, i, j in sorted(near):
            if i not in placed and t not in tracks[j]:
                tracks[j][t] = last[j] = unnamed[i]
                placed.add(i)
        begun = [pose for i, pose in enumerate(unnamed) if i not in placed]
        tracks += [{t: pose} for pose in begun]
        last += begun
    tracks += by_name.values()
    tracks.sort(key=lambda track: -sum(float(pose[:, 3].sum()) for pose in track.values()))
    joints = tracks[0][min(tracks[0])].shape[0] if tracks else 0
    if min(most, len(tracks)) * len(frames) * joints * 3 > MAX_NUMBERS:
        raise Unreadable(f"more than {MAX_NUMBERS} coordinates")
    out = np.zeros((min(most, len(tracks)), len(frames), joints, 4))
    for body, track in enumerate(tracks[:most]):
        for t, pose in track.items():
            out[body, t] = pose
    return out


def fill_unseen(points_TV3: Array, seen_TV: NDArray[np.bool_], layout: SkeletonLayout) -> Array:
    """Return points with those that were not seen filled in; one at least was seen.

    Joints not seen in a frame come from the frames around it; those never seen sit on their parent,
    and a root never seen in the middle of the others.
    """
    time = np.arange(len(points_TV3))
    out, known = points_TV3.copy(), np.asarray(seen_TV.any(axis=0))
    for joint in np.nonzero(known & ~seen_TV.all(axis=0))[0]:
        at = np.nonzero(seen_TV[:, joint])[0]
        for axis in range(points_TV3.shape[2]):
            out[:, joint, axis] = np.interp(time, at, points_TV3[at, joint, axis])
    for joint in np.nonzero(~known)[0]:
        ancestor = layout.parents[joint]
        while not known[ancestor] and layout.parents[ancestor] != ancestor:
            ancestor = layout.parents[ancestor]
        out[:, joint] = out[:, ancestor] if known[ancestor] else out[:, known].mean(axis=1)
    return out


def _torso(points_TV3: Array, layout: SkeletonLayout) -> float:
    top = points_TV3[:, list(layout.shoulders)].mean(axis=1)
    foot = points_TV3[:, list(layout.hips)].mean(axis=1)
    return float(np.median(np.linalg.norm(top - foot, axis=1)))


def clip_from_poses(
    poses_MTV4: Array, layout: SkeletonLayout, *, image: bool
) -> tuple[NDArray[np.float32] | None, str]:
    """Make a clip (M, T, V, 3), zero where a body is absent, of estimated poses.

    Estimators have x to the right, y down and z away from the camera; the clip's coordinates are
    (-x, -y, z). Image coordinates, in pixels and without z, are divided by the first body's median
    torso length and multiplied by 0.5 m. The first body's center joint in its first frame becomes
    the origin. Returns the clip, or None and the reason.
    """
    if 0 in poses_MTV4.shape:
        return None, "nobody was found"
    if len(poses_MTV4) > MOST_BODIES:
        return None, f"{len(poses_MTV4)} bodies, more than {MOST_BODIES}"
    finite = np.asarray(np.isfinite(poses_MTV4).all(axis=-1))
    seen_MTV = finite & (poses_MTV4[..., 3] >= MIN_CONFIDENCE)
    seen_MTV &= (poses_MTV4[..., :3] != 0).any(axis=-1)  # OpenPose writes zeros for unseen joints
    present_MT = np.asarray(seen_MTV.any(axis=2))
    order = [body for body in range(len(poses_MTV4)) if present_MT[body].any()]
    if not order:
        return None, "no joint was seen"
    clip = np.zeros((len(order), *poses_MTV4.shape[1:3], 3))
    for row, body in enumerate(order):
        there = present_MT[body]
        points = np.nan_to_num(poses_MTV4[body, there, :, :3], posinf=0, neginf=0)
        points = points * [-1.0, -1.0, 0.0 if image else 1.0]
        clip[row, there] = fill_unseen(points, seen_MTV[body, there], layout)
    first = present_MT[order[0]]
    if image:
        torso = _torso(clip[0, first], layout)
        if torso <= 0:
            return None, "shoulders and hips coincide, so there is no scale"
        clip *= TORSO_METRES / torso
    origin = clip[0, int(first.argmax()), layout.center].copy()
    clip[present_MT[order]] -= origin
    kept = present_MT[order].any(axis=0)
    return np.ascontiguousarray(clip[:, kept], dtype=np.float32), ""
