# SPDX-License-Identifier: Apache-2.0
"""What a store must be before anything uses it: the manifest's entries, and every array.

A store may come from anybody, with checksums that fit. All that is wrong raises `Unreadable` with
the entry or the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.data.clip_table import (
    MAX_CLASSES,
    MAX_CLIPS,
    MAX_NAME,
    MOST_BODIES,
    NO_LABEL,
    is_name,
)
from sjepa_fast.data.safe_arrays import texts_of
from sjepa_fast.errors import InputError
from sjepa_fast.opening import Unreadable
from sjepa_fast.skeletons import SkeletonLayout

Arrays = dict[str, NDArray[Any]]

# Names of splits and columns, which are parts of file names.
KEY = r"[\w-]{1,100}"
ARRAYS = ("joints", "offsets", "frames", "bodies", "labels", "names")
FILE = rf"({'|'.join(ARRAYS)}|(split|meta)_{KEY})\.npy"
MAX_FILES = 300
# Skipped inputs that a manifest lists; the list beside the store has all.
MAX_LISTED = 10_000
# Frames per second.
MOST_FPS = 10_000
_DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class PooledSet:
    """One of the sets of a pool; its classes follow those of the set before."""

    name: str
    split: str  # the one of its splits whose parts are in the pool's `train`
    classes: int  # how many of the pool's classes are its own; 0 without labels
    fingerprint: str  # of its own store


def clip_in_pool(name: str, clip: str) -> str:
    """Return what a clip of a set is called in a pool; so is a class."""
    return f"{name}/{clip}"


def sets_of_clips(names: NDArray[np.str_], sets: list[str]) -> NDArray[np.int64]:
    """Return the number of the set of each clip of a pool, by its name; a set's has no slash.

    Raises Unreadable if a clip is of none of the sets.
    """
    number = {name: index for index, name in enumerate(sets)}
    try:
        found = [number[name.partition("/")[0]] for name in names.tolist()]
    except KeyError as error:
        raise Unreadable(f"names.npy has a clip of {error}, which is none of the sets") from error
    return np.array(found, dtype=np.int64)


def is_store_name(name: object) -> bool:
    """Whether a data set may be called so: short and printable, and no path."""
    return is_name(name) and not {"/", "\\"} & set(str(name)) and name not in (".", "..")


def _is_pairs(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in value
    )


def _is_files(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= MAX_FILES
        and all(
            isinstance(entry, dict)
            and type(entry.get("bytes")) is int
            and entry["bytes"] >= 0
            and re.fullmatch(r"[0-9a-f]{64}", str(entry.get("sha256"))) is not None
            for entry in value.values()
        )
    )


def _is_classes(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MAX_CLASSES and all(map(is_name, value))


def _is_sets(value: Any) -> bool:
    fields = {"name", "split", "classes", "fingerprint"}
    return value is None or (
        isinstance(value, list)
        and all(
            isinstance(entry, dict)
            and set(entry) == fields
            and is_store_name(entry["name"])
            and re.fullmatch(KEY, str(entry["split"])) is not None
            and type(entry["classes"]) is int
            and entry["classes"] >= 0
            and re.fullmatch(r"[0-9a-f]{64}", str(entry["fingerprint"])) is not None
            for entry in value
        )
        and len({entry["name"] for entry in value}) == len(value)
    )


def _is_rate(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 <= value <= MOST_FPS)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


# Entries, what they are, and the test of it. `command` and what follows are for people.
_ENTRIES: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("name", f"a name of at most {MAX_NAME} printable characters without slashes", is_store_name),
    ("layout", "a layout", lambda value: isinstance(value, dict)),
    ("class_names", f"at most {MAX_CLASSES} printable names", _is_classes),
    ("files", f"at most {MAX_FILES} files with bytes and sha256", _is_files),
    ("skipped", "pairs of a clip and a reason", _is_pairs),
    ("clips", "a number of clips", _is_count),
    ("dtype", " or ".join(_DTYPES), lambda value: value in _DTYPES),
    ("command", "text", lambda value: isinstance(value, str)),
    ("sets", "a list of the sets of a pool", _is_sets),
    ("fps", f"a number of frames per second up to {MOST_FPS}", _is_rate),
)


def check_manifest(manifest: dict[str, Any]) -> SkeletonLayout:
    """Check the entries of a manifest and return its layout."""
    for key, what, fits in _ENTRIES:
        if not fits(manifest.get(key)):
            raise Unreadable(f"{key} is not {what}")
    files = manifest["files"]
    for name in files:
        if re.fullmatch(FILE, name) is None:
            raise Unreadable(f"a file is called {name!r}")
    lacking = [name for name in ARRAYS if f"{name}.npy" not in files]
    if lacking:
        raise Unreadable(f"lists no {', '.join(lacking)}")
    sets = manifest.get("sets") or []
    if sets and sum(entry["classes"] for entry in sets) != len(manifest["class_names"]):
        raise Unreadable("sets do not have the classes of class_names")
    try:
        return SkeletonLayout.from_dict(manifest["layout"])
    except InputError as error:
        raise Unreadable(str(error)) from error


def _check(name: str, array: NDArray[Any], kinds: str, shape: tuple[int, ...]) -> None:
    if array.dtype.kind not in kinds or not array.dtype.isnative or array.shape != shape:
        raise Unreadable(f"{name}.npy is {array.dtype} {array.shape}, not {kinds} {shape}")


def check_arrays(arrays: Arrays, manifest: dict[str, Any], layout: SkeletonLayout) -> None:
    """Check types, shapes and values of all arrays but the joints' values, which are not read."""
    clips = manifest["clips"]
    if not 0 < clips <= MAX_CLIPS:
        raise Unreadable(f"has {clips} clips, not 1 to {MAX_CLIPS}")
    joints = arrays["joints"]
    rows = joints.shape[0] if joints.ndim else 0
    _check("joints", joints, "f", (rows, layout.num_joints, 3))
    if joints.dtype.name != manifest["dtype"]:
        raise Unreadable(f"joints.npy is {joints.dtype}, not {manifest['dtype']}")
    # The types that the writer uses: torch is given these arrays as they are.
    for name, code in (("offsets", "i8"), ("frames", "i4"), ("bodies", "i4"), ("labels", "i8")):
        _check(name, arrays[name], "i", (clips + (name == "offsets"),))
        if arrays[name].dtype != np.dtype(code):
            raise Unreadable(f"{name}.npy is {arrays[name].dtype}, not {np.dtype(code)}")
    _check_rows(arrays, rows)
    labels = arrays["labels"]
    last = len(manifest["class_names"]) - 1
    if labels.min() < NO_LABEL or labels.max() > last:
        raise Unreadable(f"labels.npy has labels beyond 0..{last} and {NO_LABEL}, which is none")
    _check_names(arrays["names"], clips)
    if manifest.get("sets"):
        sets_of_clips(arrays["names"], [entry["name"] for entry in manifest["sets"]])
    for key, column in arrays.items():
        if key.startswith("split_"):
            _check(key, column, "iu", (clips,))
            if not np.isin(column, (0, 1, 2)).all():
                raise Unreadable(f"{key}.npy has codes beyond 0, 1 and 2")
        elif key.startswith("meta_"):
            _check(key, column, "iu", (clips,))


def _check_rows(arrays: Arrays, rows: int) -> None:
    frames, bodies = arrays["frames"], arrays["bodies"]
    if frames.min() < 1 or bodies.min() < 1:
        raise Unreadable("frames.npy or bodies.npy has a clip without any")
    if bodies.max() > MOST_BODIES:
        raise Unreadable(f"bodies.npy has a clip of {bodies.max()}, more than {MOST_BODIES}")
    offsets = arrays["offsets"]
    # No difference of two offsets in range can overflow.
    if offsets.min() != 0 or offsets[0] != 0 or offsets.max() != rows or offsets[-1] != rows:
        raise Unreadable(f"offsets.npy does not lead from 0 to {rows}")
    if not np.array_equal(np.diff(offsets), np.multiply(frames, bodies, dtype=np.int64)):
        raise Unreadable("offsets.npy does not fit frames and bodies")


def _check_names(names: NDArray[Any], clips: int) -> None:
    _check("names", names, "U", (clips,))
    if names.dtype.itemsize > 4 * MAX_NAME:
        raise Unreadable(f"names.npy has names of more than {MAX_NAME} characters")
    try:
        texts = texts_of(names)
    except Unreadable as error:
        raise Unreadable(f"names.npy {error}") from error
    if not all(map(is_name, texts)):
        raise Unreadable("names.npy has a name that is empty or not printable")
    if len(set(texts)) < clips:
        raise Unreadable("names.npy has a name twice")
