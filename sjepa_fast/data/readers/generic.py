# SPDX-License-Identifier: Apache-2.0
"""Your own clips: a folder with one file of joints for each clip and, if wanted, a `labels.csv`.

The joints of NAME are `NAME.npy`, (T, V, C) or (M, T, V, C), with C = 3 in metres, centimetres or
millimetres, y up, or C = 2 in image coordinates; or `NAME.json`, or a folder NAME of one `.json`
per frame (see `pose_json`); or `NAME.bvh`, or `NAME.c3d` (see `mocap`). The joints are a known
layout or that of a file `layout.json`; else those of the hierarchy of the first `.bvh`.

M bodies, T frames, V joints, C coordinates.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sjepa_fast.data.clip_table import is_name
from sjepa_fast.data.readers.labels_table import LABELS, LabelsTable, read_table, table_of
from sjepa_fast.data.readers.mocap import layout_of, read_motion, require_packages
from sjepa_fast.data.readers.own_clip import (
    SUFFIXES,
    Found,
    Up,
    clip_in_metres,
    places_of,
    read_clip,
)
from sjepa_fast.data.readers.record import (
    Columns,
    Record,
    Source,
    Splits,
    identity_of,
    readable,
    set_name,
)
from sjepa_fast.data.safe_arrays import npy_shape
from sjepa_fast.data.safe_files import is_folder, is_there, names_in, read_json
from sjepa_fast.data.units import Units, body_span, settle_units
from sjepa_fast.errors import InputError
from sjepa_fast.opening import Unreadable
from sjepa_fast.skeletons import LAYOUTS, SkeletonLayout, layout_named

LAYOUT = "layout.json"
MOST_LAYOUT = 2**20  # bytes
# Clips whose size tells the unit of all.
MEASURED = 32


def _layout(raw: Path, name: str, clips: list[Path]) -> SkeletonLayout:
    file = raw / LAYOUT
    if name:
        return layout_named(name)
    if not is_there(file):
        for path in (path for path in clips if path.suffix == ".bvh"):
            try:
                return layout_of(read_motion(path), _name_of(raw))
            except Unreadable:
                continue
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
        others = {suffix: path for suffix, path in places_of(raw, name).items() if suffix != ".npy"}
        if any(map(is_there, others.values())):
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


def _name_of(raw: Path) -> str:
    return set_name(Path(os.path.realpath(raw)).name)


def _spans(raw: Path, names: list[str], layout: SkeletonLayout) -> list[float]:
    """Measure bodies of some clips, in the unit of their files, where these do not say it."""
    kinds = [(raw / f"{name}{suffix}", name) for name in names for suffix in (".npy", ".bvh")]
    own = [name for path, name in kinds if is_there(path)]
    spans = []
    for i in np.unique(np.linspace(0, len(own) - 1, MEASURED).astype(int)) if own else ():
        try:
            found = read_clip(raw, own[i], layout, "y")
        except Unreadable:
            continue
        if found.clip_MTVC is not None and found.per_metre is None:
            spans.append(body_span(found.clip_MTVC))
    return spans


def _table(raw: Path) -> tuple[LabelsTable, list[Path]]:
    """Read the table of a folder, or make one of its clips; return it with the clips' files."""
    with readable(raw):
        inside = [raw / name for name in names_in(raw) if name != LAYOUT]
    clips = [path for path in inside if path.suffix in SUFFIXES or is_folder(path)]
    if is_there(raw / LABELS):
        return read_table(raw / LABELS), clips
    if not clips:
        value = f"{raw} has no {', '.join(SUFFIXES)}"
        raise InputError("raw", value, "name a folder of one for each clip")
    return table_of(sorted({path.stem for path in clips})), clips


def open_generic(raw: Path, *, layout: str = "", units: Units = "auto", up: Up = "auto") -> Source:
    """Open a folder of clips in the named layout, or, without a name, in that of `layout.json`.

    Without a `labels.csv` every file is a clip without a label. `units` says in what arrays in
    space and BVH files are; auto tells by the size of the bodies. `up` is their axis that is up;
    auto is y, and for C3D files what they say. Rows whose file is missing or bad, clips of an
    impossible size and files without a row are skipped with the reason. Raises InputError if
    `labels.csv` or the layout is malformed, there is no layout or no clip, no array has the
    layout's joints, or bodies have a size that no unit explains.
    """
    table, clips = _table(raw)
    require_packages({path.suffix for path in clips}, raw)
    skeleton = _layout(raw, layout, clips)
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
            found = Found(None, "name is no file name")
            if safe:
                found = clip_in_metres(raw, name, skeleton, up, factor)
            yield Record(name, found.clip_MTVC, table.labels[i], table.meta[i], found.reason)

    def splits(names: list[str], _: Columns) -> Splits:
        return table.splits(names)

    return Source(
        name=_name_of(raw),
        layout=skeleton,
        class_names=table.class_names,
        count=rows + len(strays),
        records=records,
        identity=identity_of([raw / LABELS, *clips]),
        splits=splits,
        note=note,
    )
