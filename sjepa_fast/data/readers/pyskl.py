# SPDX-License-Identifier: Apache-2.0
"""The `.pkl` of pyskl and mmaction2: `{"split": {...}, "annotations": [...]}`.

Each annotation has `frame_dir` (name), `label` and `keypoint`, (M, T, V, 3) in metres, or (M, T, V,
2) in image coordinates with `keypoint_score` (M, T, V). A pickle can run any
code when it is loaded, so only plain containers and numpy arrays are admitted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.data.readers.image_pose import clip_from_poses
from sjepa_fast.data.readers.plain_pickle import PickledArray, load_plain
from sjepa_fast.data.readers.record import (
    MAX_NUMBERS,
    MAX_SPLITS,
    SPLIT_NAME,
    Columns,
    Record,
    Source,
    Splits,
    identity_of,
    numbered_classes,
    set_name,
)
from sjepa_fast.data.safe_arrays import texts_of
from sjepa_fast.data.safe_files import state_of
from sjepa_fast.errors import InputError
from sjepa_fast.opening import Unreadable
from sjepa_fast.skeletons import LAYOUTS, SkeletonLayout

SHARED_BYTES = 64 * 2**20
_FORM = "expected {split, annotations: [{frame_dir, label, keypoint}]}"


def load_restricted(path: Path) -> Any:
    """Unpickle a file that may hold plain containers and numpy arrays only.

    Returns its content, arrays as `PickledArray`. Raises InputError if the file is missing,
    damaged, or asks for anything else.
    """
    try:
        return load_plain(path)
    except Unreadable as error:
        fix = "use a pyskl pickle of plain numpy arrays, protocol 2 or later"
        raise InputError("raw", f"{path} {error}", fix) from error


def _layout(joints: int, coordinates: int) -> SkeletonLayout:
    # Both have 17 joints: COCO's are found in images, Human3.6M's in space.
    for layout in LAYOUTS:
        if layout.num_joints == joints and (layout.name != "coco17" or coordinates == 2):
            return layout
    known = ", ".join(f"{layout.name} ({layout.num_joints})" for layout in LAYOUTS)
    raise InputError("raw", f"keypoints have {joints} joints", f"layouts: {known}")


@dataclass(frozen=True)
class _Annotation:
    """One annotation with a name and a label, or why it has none."""

    name: str
    label: int
    content: dict[str, Any]
    reason: str = ""

    def array(self, key: str) -> NDArray[Any]:
        """Return one of its arrays. Raises Unreadable if it is none, or too large."""
        array = self.content.get(key)
        if not isinstance(array, PickledArray):
            raise Unreadable(f"{key} is no NumPy array")
        try:
            return array.values(MAX_NUMBERS)
        except Unreadable as error:
            raise Unreadable(f"{key} {error}") from error


def _whole(value: Any) -> int | None:
    """Return a label, of Python or of NumPy, or None."""
    if isinstance(value, PickledArray):
        try:
            array = value.values(1)
        except Unreadable:
            return None
        return int(array.reshape(-1)[0]) if array.size and array.dtype.kind in "iu" else None
    return value if type(value) is int and abs(value) < 2**63 else None


def _name(value: Any) -> str | None:
    """Return a name: text of Python or of NumPy, or a whole number as text; or None."""
    if isinstance(value, str):
        return value
    if isinstance(value, PickledArray):
        try:
            array = value.values(1)
            if array.dtype.kind == "U":
                return texts_of(array)[0] if array.ndim == 0 else None
        except Unreadable:
            return None
    number = _whole(value)
    return None if number is None else str(number)


def _annotation(index: int, content: Any) -> _Annotation:
    given = content if isinstance(content, dict) else {}
    name, label = _name(given.get("frame_dir")), _whole(given.get("label"))
    if name is None:
        return _Annotation(f"annotation-{index}", 0, given, "has no frame_dir")
    reason = "" if label is not None else "label is no whole number"
    return _Annotation(name, label or 0, given, reason)


def _bytes(array: Any) -> int:
    return array.held if isinstance(array, PickledArray) else 0


def _members(lists: Any) -> dict[str, set[str]]:
    """Return the clips of each list of a split. Raises Unreadable if they are no lists of names."""
    if not isinstance(lists, dict) or len(lists) > MAX_SPLITS:
        raise Unreadable(f"split is no dictionary of at most {MAX_SPLITS} items")
    members = {}
    for key, value in lists.items():
        if not isinstance(key, str) or re.fullmatch(SPLIT_NAME, key) is None:
            raise Unreadable("split has a key that is no name of letters, digits, _ and -")
        names = texts_of(value.values(MAX_NUMBERS)) if isinstance(value, PickledArray) else value
        if not isinstance(names, list | tuple | set | frozenset):
            raise Unreadable(f"split {key} is no list of names")
        chosen = {_name(name) for name in names}
        if None in chosen:
            raise Unreadable(f"split {key} has a member that is no name")
        members[key] = {name for name in chosen if name is not None}
    return members


def _coordinates(raw: Path, annotations: list[_Annotation]) -> tuple[int, int]:
    """Return joints and coordinates of the first annotation that has both."""
    found = ""
    for annotation in annotations:
        try:
            shape = annotation.array("keypoint").shape
        except Unreadable as error:
            found = found or f"{annotation.name}: {error}"
            continue
        if len(shape) == 4 and shape[-1] in (2, 3):
            return shape[2], shape[3]
        found = found or f"keypoint of {annotation.name} has shape {shape}"
    value = f"{raw}: {found or 'no annotation'}"
    raise InputError("raw", value, f"{_FORM} with (M, T, V, 3) or (M, T, V, 2)")


def _clip(
    annotation: _Annotation, layout: SkeletonLayout, coordinates: int
) -> tuple[NDArray[np.float32] | None, str]:
    if annotation.reason:
        return None, annotation.reason
    try:
        keypoint = annotation.array("keypoint")
        wanted = (layout.num_joints, coordinates)
        if keypoint.ndim != 4 or keypoint.shape[2:] != wanted or 0 in keypoint.shape:
            return None, f"keypoint has shape {keypoint.shape}"
        if keypoint.dtype.kind not in "fiu":
            return None, f"keypoint is of type {keypoint.dtype}"
        if not np.isfinite(keypoint).all():
            return None, "NaN or infinite joints"
        if coordinates == 2:
            return _image_clip(annotation, keypoint, layout)
    except Unreadable as error:
        return None, str(error)
    present = keypoint.any(axis=(1, 2, 3))
    if not present.any():
        return None, "no frame with a skeleton"
    # A body that never appears is no body; the first one stays first.
    return keypoint[present].astype(np.float32), ""


def _image_clip(
    annotation: _Annotation, keypoint: NDArray[Any], layout: SkeletonLayout
) -> tuple[NDArray[np.float32] | None, str]:
    flat = np.zeros(keypoint.shape[:3])
    given = "keypoint_score" in annotation.content
    score = annotation.array("keypoint_score") if given else flat + 1
    if score.shape != keypoint.shape[:3] or score.dtype.kind not in "fiu":
        return None, f"keypoint_score has shape {score.shape}"
    poses = np.stack([keypoint[..., 0], keypoint[..., 1], flat, score], axis=-1)
    return clip_from_poses(poses.astype(np.float64), layout, image=True)


def open_pyskl(raw: Path) -> Source:
    """Open a pyskl pickle.

    Returns the opened set; `xsub_train` and `xsub_val` become the split xsub, and so on; plain
    `train` and `val` become the split default. Raises InputError if the content has another form.
    """
    content = load_restricted(raw)
    listed = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(listed, list | tuple):
        raise InputError("raw", f"{raw} has no annotations", _FORM)
    try:
        members = _members(content.get("split"))
    except Unreadable as error:
        raise InputError("raw", f"{raw}: {error}", _FORM) from error
    annotations = [_annotation(index, one) for index, one in enumerate(listed)]
    # A pickle may name one array many times; nobody's data do.
    size, held = state_of(raw)[0], sum(_bytes(one.content.get("keypoint")) for one in annotations)
    if held > 2 * size + SHARED_BYTES:
        value = f"{raw}: annotations of {held} bytes in a file of {size}"
        raise InputError("raw", value, "write every array once")
    joints, coordinates = _coordinates(raw, annotations)
    layout = _layout(joints, coordinates)
    labels = [annotation.label for annotation in annotations if not annotation.reason]
    # Actions count from 1, as in the names of NTU.
    class_names = tuple(f"A{i + 1:03d}" for i in range(len(numbered_classes(labels))))

    def records(start: int = 0) -> Iterator[Record]:
        for annotation in islice(annotations, start, None):
            clip, reason = _clip(annotation, layout, coordinates)
            yield Record(annotation.name, clip, annotation.label, {}, reason)

    def splits(kept: list[str], columns: Columns) -> Splits:
        out: Splits = {}
        for key, chosen in members.items():
            base, _, part = key.rpartition("_")
            codes = out.setdefault(base or "default", np.zeros(len(kept), dtype=np.int8))
            codes[[name in chosen for name in kept]] = 1 if part == "train" else 2
        return out

    return Source(
        name=set_name(raw.stem),
        layout=layout,
        class_names=class_names,
        count=len(annotations),
        records=records,
        identity=identity_of([raw]),
        splits=splits,
    )
