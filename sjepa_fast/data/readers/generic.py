"""Your own clips: a folder with `labels.csv` and, for each of its rows, one file of joints.

`labels.csv` has the columns `name` and `label` (numbers from 0, or words). A column `split`, or
several `split_NAME`, says train, test or nothing; further columns hold whole numbers, such as
subject. The joints of NAME are `NAME.npy`, (T, V, C) or (M, T, V, C), with C = 3 in metres, y up,
or C = 2 in image coordinates; or `NAME.json`, or a folder NAME of one `.json` per frame (see
`pose_json`). The joints are a known layout or that of a file `layout.json`.

M bodies, T frames, V joints, C coordinates.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.data.clip_table import is_name
from sjepa_fast.data.readers.image_pose import clip_from_poses, link_bodies
from sjepa_fast.data.readers.pose_json import FORMATS, read_pose_json
from sjepa_fast.data.readers.record import (
    MAX_NUMBERS,
    SPLIT_NAME,
    Columns,
    Record,
    Source,
    Splits,
    identity_of,
    numbered_classes,
    readable,
    set_name,
)
from sjepa_fast.data.safe_arrays import load_npy, npy_shape
from sjepa_fast.data.safe_files import is_folder, is_there, names_in, read_json, read_text
from sjepa_fast.errors import InputError
from sjepa_fast.opening import Unreadable
from sjepa_fast.skeletons import LAYOUTS, SkeletonLayout, layout_named

LABELS, LAYOUT = "labels.csv", "layout.json"
MOST_LABELS, MOST_LAYOUT = 64 * 2**20, 2**20  # bytes
MAX_COLUMNS, MAX_CELLS = 64, 2**21
PARTS = {"train": 1, "test": 2, "": 0}


def clip_from_array(
    array: NDArray[Any], layout: SkeletonLayout
) -> tuple[NDArray[np.float32] | None, str]:
    """Turn an array (T, V, C) or (M, T, V, C), C = 2 or 3, into a clip (M, T, V, 3).

    Returns the clip, or None and the reason.
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
        return full[present].astype(np.float32), ""
    poses = np.zeros((*full.shape[:3], 4))
    poses[..., :2], poses[..., 3] = full, 1
    return clip_from_poses(poses, layout, image=True)


def _clip(folder: Path, name: str, layout: SkeletonLayout) -> tuple[Any, str]:
    try:
        array, poses = folder / f"{name}.npy", folder / f"{name}.json"
        if is_there(array):
            return clip_from_array(load_npy(array, MAX_NUMBERS), layout)
        poses = folder / name if is_folder(folder / name) else poses
        if not is_there(poses):
            return None, f"neither {name}.npy nor {name}.json exists"
        if layout.name not in FORMATS:
            return None, f"JSON is read for {', '.join(FORMATS)} only"
        frames, image = read_pose_json(poses, layout.name, layout.num_joints)
        return clip_from_poses(link_bodies(frames), layout, image=image)
    except Unreadable as error:
        return None, str(error)


def _rows(file: Path) -> list[dict[str, str]]:
    try:
        text = read_text(file, MOST_LABELS, "utf-8-sig")
        table = csv.DictReader(io.StringIO(text, newline=""), restval="")
        keys = [key for key in table.fieldnames or [] if key]
        if len(keys) > MAX_COLUMNS:
            raise Unreadable(f"has {len(keys)} columns; at most {MAX_COLUMNS} are read")
        if not {"name", "label"} <= set(keys):
            raise InputError("raw", f"{file} has no rows of name,label", "see docs/data.md")
        most = MAX_CELLS // len(keys)
        rows = [{key: row[key].strip() for key in keys} for row in islice(table, most + 1)]
    except (Unreadable, csv.Error) as error:
        raise InputError("raw", f"{file} {error}", f"the folder needs a {LABELS}") from error
    if not rows:
        raise InputError("raw", f"{file} has no rows of name,label", "see docs/data.md")
    if len(rows) > most:
        raise InputError("raw", f"{file} has more than {most} rows", "split the set")
    return rows


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


def _check_joints(raw: Path, rows: list[dict[str, str]], layout: SkeletonLayout) -> None:
    """Refuse a layout that no array fits; reads headers, and stops at the first that fits."""
    other = ""
    sizes = set()
    for name in (row["name"] for row in rows if _is_safe(row["name"])):
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


def _labels(rows: list[dict[str, str]]) -> tuple[list[int], tuple[str, ...]]:
    words = [row["label"] for row in rows]
    try:
        numbers = [int(word) for word in words]
    except ValueError:
        names = sorted({word for word in words if word})
        index = {word: i for i, word in enumerate(names)}
        return [index.get(word, -1) for word in words], tuple(names)
    return numbers, numbered_classes(numbers)


def _check_columns(rows: list[dict[str, str]]) -> tuple[list[str], list[str]]:
    keys = list(rows[0])
    splits = [key for key in keys if key == "split" or key.startswith("split_")]
    meta = [key for key in keys if key not in ("name", "label", *splits)]
    for key in (*meta, *splits):
        if re.fullmatch(SPLIT_NAME, key) is None:
            fix = "name columns with at most 100 letters, digits, _ and -"
            raise InputError("raw", f"column {key!r} of {LABELS}", fix)
    for line, row in enumerate(rows, 2):
        for key in splits:
            if row[key] not in PARTS:
                value = f"line {line} of {LABELS}: {key} {row[key]!r}"
                raise InputError("raw", value, "write train, test or nothing")
        for key in meta:
            if re.fullmatch(r"-?[0-9]{1,18}", row[key]) is None:
                value = f"line {line} of {LABELS}: {key} {row[key]!r}"
                raise InputError("raw", value, "further columns hold whole numbers")
    return splits, meta


def open_generic(raw: Path, *, layout: str = "") -> Source:
    """Open a folder of clips in the named layout, or, without a name, in that of `layout.json`.

    Rows whose file is missing or bad and files without a row are skipped with the reason. Raises
    InputError if `labels.csv` or the layout is missing or malformed, or no array has the layout's
    joints.
    """
    rows = _rows(raw / LABELS)
    skeleton = _layout(raw, layout)
    _check_joints(raw, rows, skeleton)
    labels, class_names = _labels(rows)
    split_keys, meta_keys = _check_columns(rows)
    named = {row["name"] for row in rows}
    with readable(raw):
        inside = [raw / name for name in names_in(raw)]
    clips = [path for path in inside if path.suffix in (".npy", ".json") or is_folder(path)]
    strays = [path.name for path in clips if path.stem not in named and path.name != LAYOUT]
    chosen = {row["name"]: row for row in reversed(rows)}

    def records(start: int = 0) -> Iterator[Record]:
        for i in range(start, len(rows) + len(strays)):
            if i >= len(rows):
                yield Record(strays[i - len(rows)], None, 0, {}, f"not in {LABELS}")
                continue
            name = rows[i]["name"]
            safe = _is_safe(name)
            clip, reason = _clip(raw, name, skeleton) if safe else (None, "name is no file name")
            meta = {key: int(rows[i][key]) for key in meta_keys}
            yield Record(name, clip, labels[i], meta, reason)

    def splits(names: list[str], columns: Columns) -> Splits:
        return {
            key.removeprefix("split_").replace("split", "default"): np.array(
                [PARTS[chosen[name][key]] for name in names], dtype=np.int8
            )
            for key in split_keys
        }

    return Source(
        name=set_name(Path(os.path.realpath(raw)).name),
        layout=skeleton,
        class_names=class_names,
        count=len(rows) + len(strays),
        records=records,
        identity=identity_of([raw / LABELS, *clips]),
        splits=splits,
    )
