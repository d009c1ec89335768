# SPDX-License-Identifier: Apache-2.0
"""NTU RGB+D `.skeleton` text to tracks: the defining Python reader, and the fast C++ one.

`parse_skeleton` defines what a file means. The C++ reader (csrc/skeleton_text.cpp) reads
well-formed files to the same bits, and leaves every other file to `parse_skeleton`.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.data.readers.ntu_denoise import Track, track_motion
from sjepa_fast.data.readers.record import MAX_NUMBERS
from sjepa_kernels.native import load_library

JOINTS = 25
# The twelve columns of a joint take at least this many bytes. Denser text is left to Python.
LINE_BYTES = 24

LIBRARY = load_library(Path(__file__).with_name("_skeleton_text"), "sjepa_skeleton_version", 1)

# One track for each body id and the number of valid frames.
Tracks = tuple[list[Track], int]


def parse_skeleton(text: str) -> Tracks:
    """Read one file: frame count; per frame a body count; per body a header, a joint count, joints.

    Frames without a body are dropped; a body id's interval starts at the valid-frame index of its
    first appearance and grows by one with each appearance.

    Returns one track for each body id, in order of appearance, and the number of valid frames.
    Raises ValueError if the text ends early or has a field that is no number.
    """
    lines = text_lines(text)

    def line() -> str:
        found = next(lines, None)
        if found is None or not found.strip():
            raise ValueError("the file ends early")
        return found

    # Flat and of eight bytes for a number: lists of lists take twenty times the text.
    rows: dict[str, array[float]] = {}
    starts: dict[str, int] = {}
    valid = seen = 0
    for _ in range(int(line())):
        bodies = int(line())
        for _ in range(bodies):
            body = line().split()[0]
            count = int(line())
            if count != JOINTS:
                raise ValueError(f"a body has {count} joints, not {JOINTS}")
            seen += 1
            if seen > MAX_NUMBERS // (JOINTS * 3):
                raise ValueError(f"more than {MAX_NUMBERS} coordinates")
            starts.setdefault(body, valid)
            mine = rows.setdefault(body, array("d"))
            for _ in range(count):
                x, y, z = (float(number) for number in line().split(maxsplit=3)[:3])
                mine.extend((x, y, z))
        valid += bodies > 0
    arrays = [np.array(values).reshape(-1, JOINTS, 3) for values in rows.values()]
    return _tracks(arrays, list(starts.values())), valid


def text_lines(text: str) -> Iterator[str]:
    """Yield the lines of a text, one after another."""
    # A list of short lines takes many times the text.
    begin = 0
    while (end := text.find("\n", begin)) >= 0:
        yield text[begin:end]
        begin = end + 1
    yield text[begin:]


def _tracks(joints: list[NDArray[np.float64]], starts: list[int]) -> list[Track]:
    # Motion only chooses among several bodies; a single one does not need it.
    several = len(joints) > 1
    # Text may say inf; what is not finite is refused later, by name.
    with np.errstate(all="ignore"):
        return [
            Track(joints_TV3, start, track_motion(joints_TV3) if several else 0.0)
            for joints_TV3, start in zip(joints, starts, strict=True)
        ]


def parse_bytes(data: bytes) -> Tracks | str:
    """Read one file with the Python reader; returns its tracks, or why it cannot be used."""
    try:
        # Only numbers and ids are read, so the other columns may hold any bytes.
        return parse_skeleton(data.decode("latin-1"))
    except (ValueError, IndexError) as error:
        return str(error)


def parse_all(files: Sequence[bytes], threads: int) -> list[Tracks | str]:
    """Read several files, with the C++ reader where it is built, which takes one file per thread.

    Returns for each file its tracks, or why it cannot be used.
    """
    if LIBRARY is None or not files:
        return [parse_bytes(data) for data in files]
    read = LIBRARY.sjepa_read_skeletons
    sizes = np.array([len(data) for data in files], dtype=np.int64)
    room = sizes // (JOINTS * LINE_BYTES) + 1
    first = np.concatenate([[0], np.cumsum(room)])
    rows = int(first[-1])
    joints = np.empty((rows, JOINTS, 3), dtype=np.float64)
    body, start = np.empty(rows, dtype=np.int32), np.empty(rows, dtype=np.int32)
    counts = np.empty((len(files), 3), dtype=np.int64)
    status = np.empty(len(files), dtype=np.int32)
    read.restype = None
    read(
        (ctypes.c_char_p * len(files))(*files),
        sizes.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(len(files)),
        ctypes.c_int64(JOINTS),
        *(array.ctypes.data_as(ctypes.c_void_p) for array in (first, joints, body, start)),
        *(array.ctypes.data_as(ctypes.c_void_p) for array in (counts, status)),
        ctypes.c_int(threads),
    )
    found: list[Tracks | str] = []
    for i, data in enumerate(files):
        if status[i] != 0:
            found.append(parse_bytes(data))
            continue
        begin, (count, bodies, valid) = int(first[i]), counts[i].tolist()
        # Copies, so that no clip keeps the whole batch alive.
        mine, of_body = joints[begin : begin + count], body[begin : begin + count]
        arrays = [mine.copy()] if bodies == 1 else [mine[of_body == b] for b in range(bodies)]
        found.append((_tracks(arrays, start[begin : begin + bodies].tolist()), valid))
    return found
