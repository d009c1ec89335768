# SPDX-License-Identifier: Apache-2.0
"""Motion capture files: BVH by pybvh and C3D by c3d, both optional (extra `mocap`).

Both are written in Python, so that a damaged file is refused and cannot end the process.

A BVH file has a hierarchy of joints, which is a layout, and rotations, of which pybvh computes
positions. It names no unit; y is up. A C3D file has markers with names and a unit, without a
hierarchy.

T frames, V joints, 3 coordinates.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.data.readers.image_pose import fill_unseen
from sjepa_fast.data.readers.record import MAX_NUMBERS
from sjepa_fast.data.safe_files import read_bytes
from sjepa_fast.data.units import IN_A_METRE
from sjepa_fast.errors import InputError
from sjepa_fast.extras import require
from sjepa_fast.joint_map import body_part, words_and_side
from sjepa_fast.opening import Unreadable
from sjepa_fast.skeletons import MAX_JOINTS, SkeletonLayout

PACKAGES = {".bvh": "pybvh", ".c3d": "c3d"}
MOST_BVH, MOST_C3D = 64 * 2**20, 128 * 2**20  # bytes
MOST_LINE = 2**18  # characters of a BVH file's line; six numbers of each of 1,024 joints are fewer
# Order and signs of the axes that make the axis of this name point along y, by a rotation.
TURNS = {
    "x": ((1, 0, 2), (-1.0, 1.0, 1.0)),
    "y": ((0, 1, 2), (1.0, 1.0, 1.0)),
    "z": ((0, 2, 1), (1.0, 1.0, -1.0)),
}


@dataclass(frozen=True)
class Motion:
    """Named points over time, in the file's own unit."""

    names: tuple[str, ...]
    points_TV3: NDArray[np.float64]
    seen_TV: NDArray[np.bool_]
    parents: tuple[int, ...] = ()  # of each joint, the root its own; empty without a hierarchy
    up: str = ""  # axis that the file says is up
    per_metre: int = 0  # how many of its unit are a metre; 0 if the file does not say


def require_packages(suffixes: set[str], raw: Path) -> None:
    """Raise InputError with the command that installs what reads these files, if it is absent."""
    for suffix, package in PACKAGES.items():
        if suffix in suffixes:
            require("raw", f"{raw} has {suffix} files; reading them", package)


def read_motion(path: Path) -> Motion:
    """Read a `.bvh` or `.c3d`. Raises Unreadable, with the reason, if it cannot be."""
    read = _read_bvh if path.suffix == ".bvh" else _read_c3d
    try:
        return read(path)
    except Unreadable:
        raise
    except Exception as error:  # whatever the packages raise at what they cannot read
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise Unreadable(f"is refused by {PACKAGES[path.suffix]}: {lines[0]}") from error


def _check_bvh(data: bytes) -> None:
    """Refuse what pybvh would hold for long: it keeps all lines, and some 90 bytes a number."""
    if data.count(b"JOINT") + data.count(b"End") > 2 * MAX_JOINTS:
        raise Unreadable(f"has more than {MAX_JOINTS} joints")
    lines = data.count(b"\n") + data.count(b"\r") - data.count(b"\r\n")
    if lines * (data.count(b"JOINT") + 1) * 3 > 2 * MAX_NUMBERS:
        raise Unreadable(f"has more than {MAX_NUMBERS} coordinates")
    if re.search(rb"(?:\A|[\r\n])[^\r\n]{%d}" % MOST_LINE, data):
        raise Unreadable(f"has a line of {MOST_LINE} or more characters")
    if _words(data) > MAX_NUMBERS:
        raise Unreadable(f"has more than {MAX_NUMBERS} numbers")


def _words(data: bytes) -> int:
    """Count what blanks separate, without a copy of the whole."""
    found, piece = 0, 2**20
    for begin in range(0, len(data), piece):
        before = data[begin - 1 : begin] or b" "
        dark = np.frombuffer(before + data[begin : begin + piece], np.uint8) > ord(" ")
        found += int(np.count_nonzero(dark[1:] & ~dark[:-1]))
    return found


def _read_bvh(path: Path) -> Motion:
    data = read_bytes(path, MOST_BVH)
    _check_bvh(data)
    del data
    import pybvh

    found = pybvh.read_bvh_file(path, world_up="+y")
    points = np.asarray(found.joint_positions(), dtype=np.float64)
    parents = list(range(points.shape[1]))
    for child, parent in found.edges:
        parents[child] = parent
    seen = np.ones(points.shape[:2], dtype=bool)
    return Motion(tuple(found.joint_names), points, seen, tuple(parents))


def _read_c3d(path: Path) -> Motion:
    data = read_bytes(path, MOST_C3D)
    import c3d

    with warnings.catch_warnings():
        # It warns of much that does not matter here, such as a file without analog channels.
        warnings.simplefilter("ignore")
        file = c3d.Reader(io.BytesIO(data))
        frames, points = file.last_frame - file.first_frame + 1, file.point_used
        if frames * points * 3 > MAX_NUMBERS:
            raise Unreadable(f"has more than {MAX_NUMBERS} coordinates")
        rows = [row_V5 for _, row_V5, _ in file.read_frames()]
    if len(rows) != frames:
        raise Unreadable(f"ends early: {len(rows)} of {frames} frames")
    unit = _text_of(file, "POINT:UNITS").lower()
    if unit not in IN_A_METRE:
        raise Unreadable(f"has coordinates in {unit!r}, not {', '.join(IN_A_METRE)}")
    # In front of a colon stands the name of the person.
    names = [label.rpartition(":")[2].strip() for label in file.point_labels]
    if len(names) < points:
        raise Unreadable(f"names {len(names)} of its {points} points")
    all_TV5 = np.stack(rows).astype(np.float64)
    return Motion(
        names=tuple(names[:points]),
        points_TV3=all_TV5[..., :3],
        seen_TV=all_TV5[..., 3] >= 0,
        up=_up_of(_text_of(file, "POINT:Y_SCREEN").lower()),
        per_metre=IN_A_METRE[unit][1],
    )


def _text_of(file: Any, parameter: str) -> str:
    found = file.get(parameter)
    return "" if found is None else str(found.string_value).strip()


def _up_of(axis: str) -> str:
    """Return the axis that points up on a screen; z, as laboratories have it, if none is named."""
    up = (axis or "z").removeprefix("+")
    if up not in TURNS:
        raise Unreadable(f"has {axis} up")
    return up


def turn_up(points: NDArray[Any], up: str) -> NDArray[Any]:
    """Rotate coordinates (..., 3) whose axis `up` is up so that y is."""
    if up == "y":
        return points
    order, signs = TURNS[up]
    turned: NDArray[Any] = points[..., list(order)] * np.array(signs, dtype=points.dtype)
    return turned


def layout_of(motion: Motion, name: str) -> SkeletonLayout:
    """Make the layout of a hierarchy; its joints keep their names.

    What is left and right, and which joints are hips and shoulders, is told by the names; center
    and top of the spine are the nearest common ancestors of both hips and of both shoulders. Raises
    InputError if the names do not say it.
    """
    sides: dict[tuple[str, str], int] = {}
    parts: dict[tuple[str, str], list[int]] = {}
    for index, joint in enumerate(motion.names):
        words, side = words_and_side(joint)
        sides.setdefault(("_".join(words), side), index)
        parts.setdefault(body_part(joint), []).append(index)

    def pair(part: str, which: int) -> tuple[int, int]:
        both = [parts.get((part, side), []) for side in ("left", "right")]
        if not all(both):
            value = f"no joints of {name} are named as its left and right {part}"
            raise InputError("layout", value, "describe the joints in a layout.json")
        return both[0][which], both[1][which]

    # A shoulder joint may follow a collar bone that is called shoulder.
    hips, shoulders = pair("hip", 0), pair("shoulder", -1)
    return SkeletonLayout(
        name=name,
        joints=motion.names,
        parents=motion.parents,
        swaps=tuple(
            (left, sides[key, "right"])
            for (key, side), left in sides.items()
            if side == "left" and (key, "right") in sides
        ),
        center=_common_ancestor(motion.parents, *hips),
        spine_top=_common_ancestor(motion.parents, *shoulders),
        shoulders=shoulders,
        hips=hips,
    )


def _common_ancestor(parents: tuple[int, ...], one: int, other: int) -> int:
    line = [one]
    while parents[line[-1]] != line[-1]:
        line.append(parents[line[-1]])
    while other not in line:
        other = parents[other]
    return other


def points_of(motion: Motion, layout: SkeletonLayout, up: str) -> NDArray[np.float64]:
    """Return the layout's joints of a motion by their names, (T, V, 3), y up, in its own unit.

    Points that are not seen come from the frames around. `up` is the axis that is up, `auto` for
    what the file says, else y. Raises Unreadable if the file lacks a joint or sees none.
    """
    place = {name: index for index, name in reversed(list(enumerate(motion.names)))}
    lacking = [joint for joint in layout.joints if joint not in place]
    if lacking:
        raise Unreadable(f"has no {', '.join(lacking[:3])}; it has {', '.join(motion.names)}")
    chosen = [place[joint] for joint in layout.joints]
    if len(motion.points_TV3) * len(chosen) * 3 > MAX_NUMBERS:
        raise Unreadable(f"has more than {MAX_NUMBERS} coordinates")
    points, seen = motion.points_TV3[:, chosen], motion.seen_TV[:, chosen]
    if not seen.any():
        raise Unreadable("shows no joint of the layout")
    filled = points if seen.all() else fill_unseen(np.nan_to_num(points), seen, layout)
    return turn_up(filled, (motion.up or "y") if up == "auto" else up)
