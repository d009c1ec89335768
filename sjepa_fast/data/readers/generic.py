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
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.data.readers.image_pose import clip_from_poses, link_bodies
from sjepa_fast.data.readers.pose_json import FORMATS, read_pose_json
from sjepa_fast.data.readers.record import (
    Columns,
    Record,
    Source,
    Splits,
    identity_of,
    numbered_classes,
)
from sjepa_fast.errors import InputError
from sjepa_fast.skeletons import LAYOUTS, SkeletonLayout, layout_named

LABELS, LAYOUT = "labels.csv", "layout.json"
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
        array = folder / f"{name}.npy"
        if array.is_file():
            return clip_from_array(np.load(array, allow_pickle=False), layout)
        poses = folder / name if (folder / name).is_dir() else folder / f"{name}.json"
        if not poses.exists():
            return None, f"neither {name}.npy nor {name}.json exists"
        if layout.name not in FORMATS:
            return None, f"JSON is read for {', '.join(FORMATS)} only"
        frames, image = read_pose_json(poses, layout.name, layout.num_joints)
        return clip_from_poses(link_bodies(frames), layout, image=image)
    except (OSError, ValueError, EOFError) as error:
        return None, str(error)


def _rows(file: Path) -> list[dict[str, str]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.DictReader(lines, restval=""))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError("raw", f"{file}: {error}", f"the folder needs a {LABELS}") from error
    if not rows or not {"name", "label"} <= set(rows[0]):
        raise InputError("raw", f"{file} has no rows of name,label", "see docs/data.md")
    return [{key: value.strip() for key, value in row.items() if key} for row in rows]


def _layout(raw: Path, name: str) -> SkeletonLayout:
    file = raw / LAYOUT
    if name:
        return layout_named(name)
    if not file.exists():
        raise InputError("layout", f"{raw} has none", f"give --layout, or a {LAYOUT} there")
    try:
        return SkeletonLayout.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        fix = "write SkeletonLayout.to_dict() as JSON"
        raise InputError("raw", f"{file}: {error}", fix) from error


def _check_joints(raw: Path, rows: list[dict[str, str]], layout: SkeletonLayout) -> None:
    """Refuse a layout that no array fits; reads headers, and stops at the first that fits."""
    other = ""
    sizes = set()
    for name in (row["name"] for row in rows if row["name"] == Path(row["name"]).name):
        if (raw / f"{name}.json").exists() or (raw / name).is_dir():
            return
        try:
            shape = np.load(raw / f"{name}.npy", mmap_mode="r").shape
        except (OSError, ValueError, EOFError):
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
    inside = sorted(raw.iterdir())
    clips = [path for path in inside if path.suffix in (".npy", ".json") or path.is_dir()]
    strays = [path.name for path in clips if path.stem not in named and path.name != LAYOUT]
    chosen = {row["name"]: row for row in reversed(rows)}

    def records(start: int = 0) -> Iterator[Record]:
        for i in range(start, len(rows) + len(strays)):
            if i >= len(rows):
                yield Record(strays[i - len(rows)], None, 0, {}, f"not in {LABELS}")
                continue
            name = rows[i]["name"]
            safe = bool(name) and Path(name).name == name
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
        name=raw.resolve().name,
        layout=skeleton,
        class_names=class_names,
        count=len(rows) + len(strays),
        records=records,
        identity=identity_of([raw / LABELS, *clips]),
        splits=splits,
    )
