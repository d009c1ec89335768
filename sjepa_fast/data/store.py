# SPDX-License-Identifier: Apache-2.0
"""The packed ragged store: one folder of memory-mapped arrays and a manifest.

Rows of clip i are `offsets[i]:offsets[i+1]` of `joints` (R, V, 3), body-major: body m of frame t
is row `offsets[i] + m * frames[i] + t`. Metres, y up. The manifest holds the layout, the class
names and the size and SHA-256 of every file; it is written last, in a hidden folder that is then
renamed, so a half-written store does not exist.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.data.clip_table import NO_LABEL
from sjepa_fast.data.safe_arrays import map_npy
from sjepa_fast.data.safe_files import read_json
from sjepa_fast.data.store_schema import (
    ARRAYS,
    PooledSet,
    check_arrays,
    check_manifest,
    sets_of_clips,
)
from sjepa_fast.errors import InputError
from sjepa_fast.names import printable
from sjepa_fast.opening import Unreadable
from sjepa_fast.skeletons import SkeletonLayout

VERSION = 1
MANIFEST = "store.json"
JOINTS = "joints.npy"
_PARTS = {"train": 1, "test": 2}


@dataclass(frozen=True)
class Store:
    """An open store; the arrays are memory-mapped and read-only.

    Attributes:
        root: Its folder.
        name: Name of the data set.
        layout: Joints.
        class_names: One name per label; none where no clip has a label.
        joints: (R, V, 3) float32 or float16, metres, y up.
        offsets: (N + 1,) first row of each clip, and the end.
        frames: (N,) T of each clip.
        bodies: (N,) M of each clip.
        labels: (N,) from 0; -1 for a clip without a label.
        names: (N,) unique clip names.
        splits: For each split (N,) int8: 1 train, 2 test, 0 unused.
        meta: Further (N,) columns such as subject and camera.
        fingerprint: SHA-256 over the file table; names the content of the data set.
        skipped: (clip, reason) of inputs that were left out when the store was made.
        fps: Frames per second; 0 where it is not known.
        sets: Of a pool (`prepare merge`) its sets, in the order of their classes.
    """

    root: Path
    name: str
    layout: SkeletonLayout
    class_names: tuple[str, ...]
    joints: NDArray[Any]
    offsets: NDArray[np.int64]
    frames: NDArray[np.int32]
    bodies: NDArray[np.int32]
    labels: NDArray[np.int64]
    names: NDArray[np.str_]
    splits: dict[str, NDArray[np.int8]]
    meta: dict[str, NDArray[Any]]
    fingerprint: str
    skipped: tuple[tuple[str, str], ...]
    fps: float = 0.0
    sets: tuple[PooledSet, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def max_bodies(self) -> int:
        """Largest M of any clip."""
        return int(self.bodies.max())

    @property
    def sets_N(self) -> NDArray[np.int64] | None:
        """Of a pool, the number of the set of each clip, (N,); None for another store."""
        return sets_of_clips(self.names, [own.name for own in self.sets]) if self.sets else None

    def clip(self, index: int) -> NDArray[Any]:
        """Return one clip as (M, T, V, 3)."""
        rows = self.joints[self.offsets[index] : self.offsets[index + 1]]
        shape = (int(self.bodies[index]), int(self.frames[index]), *rows.shape[1:])
        return np.asarray(rows).reshape(shape)

    def ids(self, split: str, part: str) -> NDArray[np.int64]:
        """Return the clip indices of one part (train or test) of a split, in rising order.

        Raises InputError if split or part does not exist, or the training part is empty.
        """
        if part not in _PARTS:
            raise InputError("part", part, f"use {' or '.join(_PARTS)}")
        if split not in self.splits:
            own = ", ".join(self.splits) or "none: prepare it again with --split-by random"
            raise InputError("data.split", split, f"{self.name} has {own}")
        found = np.nonzero(self.splits[split] == _PARTS[part])[0]
        if part == "train" and len(found) == 0:
            raise InputError("data.split", f"{split} has no training clip", "use another split")
        return found

    def labelled(self, split: str, part: str) -> NDArray[np.int64]:
        """Return those clips of `ids` that have a label; there may be none."""
        ids = self.ids(split, part)
        has_label_K: NDArray[np.bool_] = self.labels[ids] != NO_LABEL
        return ids[has_label_K]


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_of(values: dict[str, Any]) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _damaged(root: Path, what: str) -> InputError:
    return InputError("data.root", f"{root}: {what}", "run sjepa_fast.prepare again")


def _manifest(root: Path) -> dict[str, Any]:
    if not (root / MANIFEST).exists():
        fix = f"run: python -m sjepa_fast.prepare NAME --raw DIR --out {root}"
        raise InputError("data.root", f"{root} has no store", fix)
    try:
        manifest = read_json(root / MANIFEST)
    except Unreadable as error:
        raise _damaged(root, f"{MANIFEST} is unreadable, it {error}") from error
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if version != VERSION:
        fix = f"this release reads version {VERSION}; prepare the data again"
        raise InputError("data.root", f"{root} is a store of version {version}", fix)
    checksum = manifest.pop("checksum", None)
    if checksum not in (None, fingerprint_of(manifest)):
        raise _damaged(root, f"{MANIFEST} does not match its checksum")
    return dict(manifest)


def _map(root: Path, name: str, entry: dict[str, Any]) -> NDArray[Any]:
    path = root / name
    if not path.is_file():
        raise _damaged(root, f"{name} is missing")
    if path.stat().st_size != entry["bytes"]:
        raise _damaged(root, f"{name} has {path.stat().st_size} of {entry['bytes']} bytes")
    try:
        return map_npy(path)
    except Unreadable as error:
        raise _damaged(root, f"{name} {error}") from error


def open_store(root: Path, *, verify: bool = True) -> Store:
    """Open a store.

    Args:
        root: Its folder.
        verify: Also compare every file with its checksum (reads everything once).

    Returns:
        The store, memory-mapped.

    Raises:
        InputError: If there is no store, it has another version, a file is missing, truncated or
            altered, or an entry or array is not what a store has (also without `verify`).
    """
    root = Path(root)
    manifest = _manifest(root)
    try:
        layout = check_manifest(manifest)
    except Unreadable as error:
        raise _damaged(root, f"{MANIFEST}: {error}") from error
    files: dict[str, Any] = manifest["files"]
    arrays = {Path(name).stem: _map(root, name, entry) for name, entry in files.items()}
    try:
        check_arrays(arrays, manifest, layout)
    except Unreadable as error:
        raise _damaged(root, str(error)) from error
    for name, entry in files.items():
        if verify and digest(root / name) != entry["sha256"]:
            raise _damaged(root, f"{name} does not match its checksum")
    return Store(
        root=root,
        name=manifest["name"],
        layout=layout,
        class_names=tuple(manifest["class_names"]),
        **{name: arrays[name] for name in ARRAYS},
        splits={k.removeprefix("split_"): v for k, v in arrays.items() if k.startswith("split_")},
        meta={k.removeprefix("meta_"): v for k, v in arrays.items() if k.startswith("meta_")},
        fingerprint=fingerprint_of(files),
        skipped=tuple((printable(clip), printable(why)) for clip, why in manifest["skipped"]),
        fps=float(manifest.get("fps") or 0),
        sets=tuple(PooledSet(**entry) for entry in manifest.get("sets") or ()),
    )
