# SPDX-License-Identifier: Apache-2.0
"""One clip of your own, in any of the forms that a folder of them may have.

M bodies, T frames, V joints, C coordinates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.data.readers.image_pose import clip_from_poses, link_bodies
from sjepa_fast.data.readers.mocap import PACKAGES, points_of, read_motion, turn_up
from sjepa_fast.data.readers.pose_json import FORMATS, read_pose_json
from sjepa_fast.data.readers.record import MAX_NUMBERS
from sjepa_fast.data.safe_arrays import load_npy
from sjepa_fast.data.safe_files import is_folder, is_there
from sjepa_fast.data.units import odd_size
from sjepa_fast.opening import Unreadable
from sjepa_fast.skeletons import SkeletonLayout

SUFFIXES = (".npy", ".json", *PACKAGES)

Up = Literal["auto", "y", "z"]


class Found(NamedTuple):
    """A clip that was read, or why it was not."""

    clip_MTVC: NDArray[np.float32] | None
    reason: str = ""
    # How many of its unit are a metre; None for what all clips of the folder are in.
    per_metre: int | None = None


def clip_from_array(array: NDArray[Any], layout: SkeletonLayout, up: str = "y") -> Found:
    """Turn an array (T, V, C) or (M, T, V, C), C = 2 or 3, into a clip (M, T, V, 3).

    Three coordinates keep their unit; `up` is their axis that is up. Two become metres.
    """
    full = array[None] if array.ndim == 3 else array
    joints = layout.num_joints
    if full.ndim != 4 or full.shape[2] != joints or full.shape[3] not in (2, 3) or 0 in full.shape:
        wanted = f"(T, {joints}, 2 or 3) or (M, T, {joints}, 2 or 3)"
        return Found(None, f"shape {array.shape}, not {wanted}")
    if full.dtype.kind not in "fiu":
        return Found(None, f"type {full.dtype}")
    if full.shape[3] == 3:
        if not np.isfinite(full).all():
            return Found(None, "NaN or infinite joints")
        present = full.any(axis=(1, 2, 3))
        if not present.any():
            return Found(None, "no frame with a skeleton")
        # What overflows becomes infinite, and the store refuses it.
        with np.errstate(over="ignore"):
            return Found(turn_up(full[present].astype(np.float32), up))
    poses = np.zeros((*full.shape[:3], 4))
    poses[..., :2], poses[..., 3] = full, 1
    return Found(*clip_from_poses(poses, layout, image=True), per_metre=1)


def read_clip(folder: Path, name: str, layout: SkeletonLayout, up: str) -> Found:
    """Read the clip of a name in its own unit; `up` is as in `open_generic`. Raises Unreadable."""
    there = {suffix: path for suffix, path in places_of(folder, name).items() if is_there(path)}
    if ".npy" in there:
        return clip_from_array(load_npy(there[".npy"], MAX_NUMBERS), layout, _up(up))
    if "" in there or ".json" in there:
        if layout.name not in FORMATS:
            return Found(None, f"JSON is read for {', '.join(FORMATS)} only")
        poses = there.get("", there.get(".json", folder))
        frames, image = read_pose_json(poses, layout.name, layout.num_joints)
        return Found(*clip_from_poses(link_bodies(frames), layout, image=image), per_metre=1)
    for path in there.values():
        motion = read_motion(path)
        points_TV3 = points_of(motion, layout, up)
        with np.errstate(over="ignore"):
            return Found(points_TV3[None].astype(np.float32), per_metre=motion.per_metre or None)
    return Found(None, f"none of {', '.join(f'{name}{suffix}' for suffix in SUFFIXES)} exists")


def places_of(folder: Path, name: str) -> dict[str, Path]:
    """Return where a clip may lie, by what its name ends in; "" for a folder of `.json`."""
    inside = {"": folder / name} if is_folder(folder / name) else {}
    return inside | {suffix: folder / f"{name}{suffix}" for suffix in SUFFIXES}


def _up(asked: str) -> str:
    return "y" if asked == "auto" else asked


def clip_in_metres(folder: Path, name: str, layout: SkeletonLayout, up: str, factor: int) -> Found:
    """Read one clip in metres, whose unit is `factor` to the metre where its file says nothing."""
    try:
        found = read_clip(folder, name, layout, up)
    except Unreadable as error:
        return Found(None, str(error))
    divisor = factor if found.per_metre is None else found.per_metre
    if found.clip_MTVC is None:
        return found
    clip = found.clip_MTVC / np.float32(divisor) if divisor > 1 else found.clip_MTVC
    odd = "" if found.per_metre == 1 else odd_size(clip)
    return Found(None, odd) if odd else Found(clip)
