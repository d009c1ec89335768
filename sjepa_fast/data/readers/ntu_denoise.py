# SPDX-License-Identifier: Apache-2.0
"""Denoising of raw NTU tracks, step by step as the field does it (method 1.3).

Shapes: T frames, V = 25 joints, 3 coordinates. A track is one body id; its interval counts valid
frames (frames with at least one body).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Joints = NDArray[np.float64]

MIN_FRAMES = 11
SPREAD_RATIO = 0.8
MAX_BAD_SHARE = 0.69754
SPINE_MIDDLE = 1


@dataclass(frozen=True, eq=False)
class Track:
    """One body id of a file: its joints, first valid frame, and how much it moves."""

    joints_TV3: Joints
    start: int
    motion: float

    @property
    def end(self) -> int:
        """One past the last frame; gaps inside a track are not preserved."""
        return self.start + len(self.joints_TV3)


def track_motion(joints_TV3: Joints) -> float:
    """Sum over x, y, z of the variance over all frames and joints together."""
    # Each coordinate contiguous in memory: NumPy is several times slower along the other axis.
    xyz = np.ascontiguousarray(joints_TV3.reshape(-1, 3).T)
    return float(xyz.var(axis=1).sum())


def drop_short(tracks: list[Track]) -> list[Track]:
    """If there are several tracks, drop those of 11 frames or fewer."""
    if len(tracks) < 2:
        return tracks
    return [track for track in tracks if len(track.joints_TV3) > MIN_FRAMES]


def good_frames(joints_TV3: Joints) -> NDArray[np.bool_]:
    """Frames whose width is at most 0.8 of their height: a standing or sitting person."""
    x, y = np.ascontiguousarray(joints_TV3[..., :2].transpose(2, 0, 1))
    return np.asarray(np.ptp(x, axis=1) <= SPREAD_RATIO * np.ptp(y, axis=1))


def drop_spread(tracks: list[Track]) -> list[Track]:
    """While two or more remain, drop tracks with too many wide frames (furniture, reflections).

    The motion of a track that stays becomes the smaller of its motion and that of its good frames.
    """
    kept = list(tracks)
    for track in tracks:
        if len(kept) < 2:
            break
        good = good_frames(track.joints_TV3)
        if 1 - good.mean() >= MAX_BAD_SHARE:
            kept.remove(track)
        elif not good.all():
            calmer = min(track.motion, track_motion(track.joints_TV3[good]))
            kept[kept.index(track)] = replace(track, motion=calmer)
    return kept


def assign_actors(tracks: list[Track]) -> list[list[Track]]:
    """Give tracks to at most two actors.

    The track with most motion is actor 1. Each further track, in order of falling motion, joins
    actor 1 if it does not overlap that actor's span, else actor 2 on the same condition, else it is
    dropped. As in the field's scripts, a single shared frame is no overlap (the later track takes
    it), and actor 2's span begins at frame 0 even when its first track begins later.
    """
    first, *others = sorted(tracks, key=lambda t: -t.motion)
    actors: list[list[Track]] = [[first], []]
    spans = [(first.start, first.end - 1), (0, 0)]
    for track in others:
        for actor, (low, high) in enumerate(spans):
            last = track.end - 1
            if min(high, last) - max(low, track.start) <= 0:
                actors[actor].append(track)
                spans[actor] = min(low, track.start), max(high, last)
                break
    return [actor for actor in actors if actor]


def stack_actors(actors: list[list[Track]], frames: int) -> Joints:
    """Lay the actors' tracks on the time axis, zero where absent: (M, T, V, 3)."""
    joints = actors[0][0].joints_TV3.shape[1]
    out = np.zeros((len(actors), frames, joints, 3))
    for body, tracks in enumerate(actors):
        for track in tracks:
            end = min(track.end, frames)
            out[body, track.start : end] = track.joints_TV3[: end - track.start]
    return out


def drop_empty_frames(clip_MTV3: Joints) -> Joints:
    """Of a clip with several tracks, drop frames whose coordinates sum to exactly zero."""
    return clip_MTV3[:, clip_MTV3.sum(axis=(0, 2, 3)) != 0]


def center_clip(clip_MTV3: Joints) -> Joints:
    """Subtract actor 1's spine middle in its first non-zero frame; absent frames stay zero."""
    bodies, frames, joints, _ = clip_MTV3.shape
    # Joints and coordinates as one axis: NumPy is slow along an axis of three.
    out = clip_MTV3.reshape(bodies, frames, joints * 3)
    present = (out != 0).any(axis=2)
    first = int(present[0].argmax())
    out = out - np.tile(clip_MTV3[0, first, SPINE_MIDDLE], joints)
    out[~present] = 0
    centered: Joints = out.reshape(clip_MTV3.shape)
    return centered


def denoise(tracks: list[Track], frames: int) -> Joints | None:
    """Run all steps on the tracks, one per body id, of a file with so many valid frames.

    Returns (M, T, 25, 3) with M 1 or 2, or None if nothing is left.
    """
    several = len(tracks) > 1
    kept = drop_spread(drop_short(tracks)) if several else tracks
    if not kept:
        return None
    clip = stack_actors(assign_actors(kept), frames)
    if several:
        clip = drop_empty_frames(clip)
    if clip.shape[1] == 0 or not (clip[0] != 0).any():
        return None
    return center_clip(clip)
