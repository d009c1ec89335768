"""The `.npz` of CTR-GCN and MAMP: `x_train, y_train, x_test, y_test`.

x is (N, 300, 150) float32, two bodies of 25 joints side by side, padded with zero frames at the
end; y is one-hot (N, classes). T frames, M bodies, V = 25 joints.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.data.readers.record import Record, Source, identity_of, two_parts
from sjepa_fast.errors import InputError
from sjepa_fast.skeletons import NTU25

WIDTH = 150


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


def _header(file: IO[bytes], member: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read(file)
    if fortran or dtype.kind not in "fiub" or len(shape) < 2:
        raise InputError("raw", f"{member} is {dtype} {shape}", "expected C-ordered numbers")
    return shape, dtype


def _shape(archive: zipfile.ZipFile, member: str) -> tuple[int, ...]:
    with archive.open(f"{member}.npy") as file:
        return _header(file, member)[0]


def _rows(archive: zipfile.ZipFile, member: str) -> Iterator[NDArray[Any]]:
    # np.load would hold the whole member (gigabytes); the .npy inside streams row by row.
    try:
        with archive.open(f"{member}.npy") as file:
            shape, dtype = _header(file, member)
            size = int(np.prod(shape[1:])) * dtype.itemsize
            for _ in range(shape[0]):
                data = file.read(size)
                if len(data) < size:
                    raise InputError("raw", f"{member} ends early", "fetch the file again")
                yield np.frombuffer(data, dtype=dtype).reshape(shape[1:])
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError("raw", f"{member} is damaged ({error})", "fetch the file again") from error


def _labels(archive: zipfile.ZipFile, part: str) -> NDArray[np.int64]:
    frames, one_hot = _shape(archive, f"x_{part}"), _shape(archive, f"y_{part}")
    if frames[0] != one_hot[0]:
        value = f"{frames[0]} clips in x_{part}, {one_hot[0]} labels in y_{part}"
        raise InputError("raw", value, "fetch the file again")
    if len(frames) != 3 or frames[2] != WIDTH:
        raise InputError("raw", f"x_{part} is {frames}", f"expected (clips, frames, {WIDTH})")
    # A row without a one has no label; the store refuses it.
    found = [int(row.argmax()) if row.any() else -1 for row in _rows(archive, f"y_{part}")]
    return np.array(found, dtype=np.int64)


def open_ctrgcn(raw: Path, *, split_name: str = "xsub") -> Source:
    """Open the `.npz` of CTR-GCN or MAMP and call its split `split_name`.

    Returns the opened set; clips are named train-000000, test-000000 and so on. Raises InputError
    if the file is missing, damaged or of another layout.
    """
    try:
        with zipfile.ZipFile(raw) as archive:
            members = {Path(name).stem for name in archive.namelist()}
            wanted = {"x_train", "y_train", "x_test", "y_test"}
            if not wanted <= members:
                lacks = ", ".join(sorted(wanted - members))
                raise InputError("raw", f"{raw} lacks {lacks}", "use a CTR-GCN or MAMP .npz")
            labels = {part: _labels(archive, part) for part in ("train", "test")}
            width = max(_shape(archive, f"y_{part}")[1] for part in ("train", "test"))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("raw", f"{raw}: {error}", "name a readable .npz file") from error

    def records(start: int = 0) -> Iterator[Record]:
        with zipfile.ZipFile(raw) as archive:
            for code, part in ((1, "train"), (2, "test")):
                passed = min(start, len(labels[part]))
                start -= passed
                rows = islice(_rows(archive, f"x_{part}"), passed, None)
                for i, row in enumerate(rows, passed):
                    name, meta = f"{part}-{i:06d}", {"part": code}
                    clip = clip_from_row(row)
                    reason = "" if clip is not None else "all frames are zero"
                    if clip is not None and not np.isfinite(clip).all():
                        clip, reason = None, "NaN or infinite joints"
                    yield Record(name, clip, int(labels[part][i]), meta, reason)

    return Source(
        name=raw.stem,
        layout=NTU25,
        class_names=tuple(f"A{action:03d}" for action in range(1, width + 1)),
        count=len(labels["train"]) + len(labels["test"]),
        records=records,
        identity=identity_of([raw]),
        splits=lambda _, columns: {split_name: two_parts(columns["part"] == 1)},
    )
