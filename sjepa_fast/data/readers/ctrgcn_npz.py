# SPDX-License-Identifier: Apache-2.0
"""The `.npz` of CTR-GCN and MAMP: `x_train, y_train, x_test, y_test`.

x is (N, 300, 150) float32, two bodies of 25 joints side by side, padded with zero frames at the
end; y is one-hot (N, classes). T frames, M bodies, V = 25 joints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.data.clip_table import MAX_CLASSES, MAX_CLIPS
from sjepa_fast.data.readers.record import (
    MAX_NUMBERS,
    SPLIT_NAME,
    Record,
    Source,
    identity_of,
    readable,
    set_name,
    two_parts,
)
from sjepa_fast.data.safe_arrays import Npz
from sjepa_fast.errors import InputError
from sjepa_fast.skeletons import NTU25

WIDTH = 150
MAX_FRAMES = MAX_NUMBERS // WIDTH
MOST_LABELS = 2**30


def clip_from_row(row: NDArray[np.floating[Any]]) -> NDArray[np.float32] | None:
    """Turn one padded row (300, 150) into a clip (M, T, 25, 3), or None if every frame is zero.

    Trailing zero frames are dropped, and so is a second body that is all zero (NTU-60) or an exact
    copy of the first (one actor in NTU-120).
    """
    filled = np.nonzero((row != 0).any(axis=1))[0]
    if len(filled) == 0:
        return None
    bodies = row[: filled[-1] + 1].reshape(-1, 2, 25, 3).transpose(1, 0, 2, 3)
    single = not (bodies[1] != 0).any() or np.array_equal(bodies[0], bodies[1])
    return np.ascontiguousarray(bodies[:1] if single else bodies, dtype=np.float32)


def _check(archive: Npz, part: str) -> int:
    """Check types and shapes of one part and return its number of classes."""
    x, y = archive.header(f"x_{part}"), archive.header(f"y_{part}")
    for name, header, dims in (("x", x, 3), ("y", y, 2)):
        fits = len(header.shape) == dims and not (header.fortran and 0 not in header.shape)
        if not fits or header.dtype.kind not in "fiub":
            value = f"{name}_{part} is {header.dtype} {header.shape}"
            raise InputError("raw", value, f"expected C-ordered numbers in {dims} dimensions")
    if x.shape[0] != y.shape[0]:
        value = f"{x.shape[0]} clips in x_{part}, {y.shape[0]} labels in y_{part}"
        raise InputError("raw", value, "fetch the file again")
    if x.shape[2] != WIDTH or not 0 < x.shape[1] <= MAX_FRAMES:
        fix = f"expected (clips, frames, {WIDTH}) with at most {MAX_FRAMES} frames"
        raise InputError("raw", f"x_{part} is {x.shape}", fix)
    if x.shape[0] > MAX_CLIPS or not 0 < y.shape[1] <= MAX_CLASSES or y.size > MOST_LABELS:
        fix = f"at most {MAX_CLIPS} clips, {MAX_CLASSES} classes and {MOST_LABELS} bytes are read"
        raise InputError("raw", f"y_{part} is {y.shape}", fix)
    archive.check_ratio(f"x_{part}")
    return y.shape[1]


def _labels(archive: Npz, part: str) -> NDArray[np.int64]:
    shape = archive.header(f"y_{part}").shape
    at_once = max(1, 2**17 // shape[1])
    counts = [min(at_once, shape[0] - first) for first in range(0, shape[0], at_once)]
    found = [np.zeros(0, dtype=np.int64)]
    for block in archive.blocks(f"y_{part}", counts, 2**17):
        assert block is not None
        # A row without a one, or with what is no number, has no label; the store refuses it.
        sound = np.isfinite(block).all(axis=1) & block.any(axis=1)
        found.append(np.where(sound, block.argmax(axis=1), -1))
    return np.concatenate(found)


def _records(archive: Npz, part: str, labels: NDArray[np.int64], passed: int) -> Iterator[Record]:
    code = {"train": 1, "test": 2}[part]
    # np.load would hold the whole member (gigabytes); the .npy inside streams row by row.
    rows = archive.blocks(f"x_{part}", repeat(1, len(labels)), MAX_NUMBERS)
    for i, block in enumerate(islice(rows, passed, None), passed):
        assert block is not None
        clip = clip_from_row(block[0])
        reason = "" if clip is not None else "all frames are zero"
        if clip is not None and not np.isfinite(clip).all():
            clip, reason = None, "NaN or infinite joints"
        yield Record(f"{part}-{i:06d}", clip, int(labels[i]), {"part": code}, reason)


def open_ctrgcn(raw: Path, *, split_name: str = "xsub") -> Source:
    """Open the `.npz` of CTR-GCN or MAMP and call its split `split_name`.

    Returns the opened set; clips are named train-000000, test-000000 and so on. Raises InputError
    if the file is missing, damaged or of another layout, also when its records are read.
    """
    if re.fullmatch(SPLIT_NAME, split_name) is None:
        fix = "use at most 100 letters, digits, _ and -"
        raise InputError("split_name", repr(split_name), fix)
    parts = ("train", "test")
    with readable(raw), Npz(raw) as archive:
        lacks = [name for part in parts for name in (f"x_{part}", f"y_{part}")]
        lacks = [name for name in lacks if name not in archive]
        if lacks:
            fix = "use a CTR-GCN or MAMP .npz"
            raise InputError("raw", f"{raw} lacks {', '.join(lacks)}", fix)
        width = max(_check(archive, part) for part in parts)
        labels = {part: _labels(archive, part) for part in parts}

    def records(start: int = 0) -> Iterator[Record]:
        with readable(raw), Npz(raw) as archive:
            for part in parts:
                passed = min(start, len(labels[part]))
                start -= passed
                yield from _records(archive, part, labels[part], passed)

    return Source(
        name=set_name(raw.stem),
        layout=NTU25,
        class_names=tuple(f"A{action:03d}" for action in range(1, width + 1)),
        count=len(labels["train"]) + len(labels["test"]),
        records=records,
        identity=identity_of([raw]),
        splits=lambda _, columns: {split_name: two_parts(columns["part"] == 1)},
    )
