"""Your own clips: a folder with one file of joints for each clip and, if wanted, a `labels.csv`.

The joints of NAME are `NAME.npy`, (T, V, C) or (M, T, V, C), with C = 3 in metres, centimetres or
millimetres, y up, or C = 2 in image coordinates; or `NAME.json`, or a folder NAME of one `.json`
per frame (see `pose_json`). The joints are a known layout or that of a file `layout.json`.

M bodies, T frames, V joints, C coordinates.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.data.clip_table import is_name
from sjepa_fast.data.readers.image_pose import clip_from_poses, link_bodies
from sjepa_fast.data.readers.labels_table import LABELS, LabelsTable, read_table, table_of
from sjepa_fast.data.readers.pose_json import FORMATS, read_pose_json
from sjepa_fast.data.readers.record import (
    MAX_NUMBERS,
    Columns,
    Record,
    Source,
    Splits,
    identity_of,
    readable,
    set_name,
)
from sjepa_fast.data.safe_arrays import load_npy, npy_shape
from sjepa_fast.data.safe_files import is_folder, is_there, names_in, read_json
from sjepa_fast.data.units import Units, body_span, odd_size, settle_units
from sjepa_fast.errors import InputError
from sjepa_fast.opening import Unreadable
from sjepa_fast.skeletons import LAYOUTS, SkeletonLayout, layout_named

LAYOUT = "layout.json"
MOST_LAYOUT = 2**20  # bytes
# Clips whose size tells the unit of all.
MEASURED = 32


def clip_from_array(
    array: NDArray[Any], layout: SkeletonLayout, factor: int = 1
) -> tuple[NDArray[np.float32] | None, str]:
    """Turn an array (T, V, C) or (M, T, V, C), C = 2 or 3, into a clip (M, T, V, 3) in metres.

    Three coordinates are divided by `factor`, how many of their unit are a metre. Returns the clip,
    or None and the reason.
    """
    full = array[None] if array.ndim == 3 else array
    joints = layout.num_joints
    if full.ndim != 4 or full.shape[2] != joints or full.shape[3] not in (2, 3) or 0 in full.shape:
        return None, f"shape {array.shape}, not (T, {joints}, 2 or 3) or (M, T, {joints}, 2 or 3)"
    if full.dtype.kind not in "fiu":
        return None, f"type {full.dtype}"
    if full.shape[3] == 3:
        if not np.isfinite(full).all():
            return None, "NaN or infinite joints"
        present = full.any(axis=(1, 2, 3))
        if not present.any():
            return None, "no frame with a skeleton"
        # What overflows becomes infinite, and the store refuses it.
        with np.errstate(over="ignore"):
            found = full[present].astype(np.float32)
        return found / np.float32(factor) if factor > 1 else found, ""
    poses = np.zeros((*full.shape[:3], 4))
    poses[..., :2], poses[..., 3] = full, 1
    return clip_from_poses(poses, layout, image=True)


def _clip(folder: Path, name: str, layout: SkeletonLayout, factor: int) -> tuple[Any, str]:
    try:
        array, poses = folder / f"{name}.npy", folder / f"{name}.json"
        if is_there(array):
            values = load_npy(array, MAX_NUMBERS)
            clip, reason = clip_from_array(values, layout, factor)
            odd = odd_size(clip) if clip is not None and values.shape[-1] == 3 else ""
            return (None, odd) if odd else (clip, reason)
        poses = folder / name if is_folder(folder / name) else poses
        if not is_there(poses):
            return None, f"neither {name}.npy nor {name}.json exists"
        if layout.name not in FORMATS:
            return None, f"JSON is read for {', '.join(FORMATS)} only"
        frames, image = read_pose_json(poses, layout.name, layout.num_joints)
        return clip_from_poses(link_bodies(frames), layout, image=image)
    except Unreadable as error:
        return None, str(error)


def _layout(raw: Path, name: str) -> SkeletonLayout:
    file = raw / LAYOUT
    if name:
        return layout_named(name)
    if not is_there(file):
        raise InputError("layout", f"{raw} has none", f"give --layout, or a {LAYOUT} there")
    try:
        values = read_json(file, MOST_LAYOUT)
        if not isinstance(values, dict):
            raise Unreadable("is no mapping")
        return SkeletonLayout.from_dict(values)
    except Unreadable as error:
        fix = "write SkeletonLayout.to_dict() as JSON"
        raise InputError("raw", f"{file} {error}", fix) from error


def _is_safe(name: str) -> bool:
    """Whether it is the name of a file in the folder."""
    return is_name(name) and Path(name).name == name and name != ".."


def _check_joints(raw: Path, names: list[str], layout: SkeletonLayout) -> None:
    """Refuse a layout that no array fits; reads headers, and stops at the first that fits."""
    other = ""
    sizes = set()
    for name in filter(_is_safe, names):
        if is_there(raw / f"{name}.json") or is_folder(raw / name):
            return
        try:
            shape = npy_shape(raw / f"{name}.npy")
        except Unreadable:
            continue
        if len(shape) not in (3, 4):
            continue
        if shape[-2] == layout.num_joints:
            return
        other = other or f"{layout.name} has {layout.num_joints} joints, {name}.npy {shape[-2]}"
        sizes.add(shape[-2])
    if other:
        fits = [known.name for known in LAYOUTS if known.num_joints in sizes]
        fix = (
            f"choose one with as many: {', '.join(fits)}" if fits else f"describe them in {LAYOUT}"
        )
        raise InputError("layout", other, fix)


def _spans(raw: Path, names: list[str], layout: SkeletonLayout) -> list[float]:
    """Measure bodies of some clips in space, in the unit of their files."""
    arrays = [raw / f"{name}.npy" for name in filter(_is_safe, names)]
    arrays = [path for path in arrays if is_there(path)]
    spans = []
    for i in np.unique(np.linspace(0, len(arrays) - 1, MEASURED).astype(int)) if arrays else ():
        try:
            array = load_npy(arrays[i], MAX_NUMBERS)
        except Unreadable:
            continue
        clip = clip_from_array(array, layout)[0] if array.shape[-1:] == (3,) else None
        spans += [] if clip is None else [body_span(clip)]
    return spans


def _table(raw: Path) -> tuple[LabelsTable, list[Path]]:
    """Read the table of a folder, or make one of its clips; return it with the clips' files."""
    with readable(raw):
        inside = [raw / name for name in names_in(raw) if name != LAYOUT]
    clips = [path for path in inside if path.suffix in (".npy", ".json") or is_folder(path)]
    if is_there(raw / LABELS):
        return read_table(raw / LABELS), clips
    if not clips:
        raise InputError("raw", f"{raw} has no .npy or .json", "name a folder of one for each clip")
    return table_of(sorted({path.stem for path in clips})), clips


def open_generic(raw: Path, *, layout: str = "", units: Units = "auto") -> Source:
    """Open a folder of clips in the named layout, or, without a name, in that of `layout.json`.

    Without a `labels.csv` every file is a clip without a label. `units` says in what arrays in
    space are; auto tells by the size of the bodies. Rows whose file is missing or bad, clips of an
    impossible size and files without a row are skipped with the reason. Raises InputError if
    `labels.csv` or the layout is malformed, there is no layout or no clip, no array has the
    layout's joints, or bodies have a size that no unit explains.
    """
    table, clips = _table(raw)
    skeleton = _layout(raw, layout)
    _check_joints(raw, table.names, skeleton)
    factor, note = settle_units(_spans(raw, table.names, skeleton), units)
    named = set(table.names)
    strays = [path.name for path in clips if path.stem not in named]
    rows = len(table.names)

    def records(start: int = 0) -> Iterator[Record]:
        for i in range(start, rows + len(strays)):
            if i >= rows:
                yield Record(strays[i - rows], None, None, {}, f"not in {LABELS}")
                continue
            name = table.names[i]
            safe = _is_safe(name)
            clip, reason = (
                _clip(raw, name, skeleton, factor) if safe else (None, "name is no file name")
            )
            yield Record(name, clip, table.labels[i], table.meta[i], reason)

    def splits(names: list[str], _: Columns) -> Splits:
        return table.splits(names)

    return Source(
        name=set_name(Path(os.path.realpath(raw)).name),
        layout=skeleton,
        class_names=table.class_names,
        count=rows + len(strays),
        records=records,
        identity=identity_of([raw / LABELS, *clips]),
        splits=splits,
        note=note,
    )
