# SPDX-License-Identifier: Apache-2.0
"""Raw NTU RGB+D `.skeleton` text files (Kinect v2: 25 joints, up to six body ids per file)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.data.readers.ntu_denoise import denoise
from sjepa_fast.data.readers.ntu_splits import ntu60_splits, ntu120_splits, parse_ntu_name
from sjepa_fast.data.readers.ntu_text import Tracks, parse_all
from sjepa_fast.data.readers.record import (
    KINECT_FPS,
    Record,
    Source,
    closed_folders,
    identity_of,
)
from sjepa_fast.data.safe_files import find_files, read_bytes, read_text
from sjepa_fast.errors import InputError
from sjepa_fast.opening import Unreadable
from sjepa_fast.skeletons import NTU25

CLASSES = {"ntu60": 60, "ntu120": 120}
MAX_FRAMES = 300
# Files that are read and parsed together, while the batch before them is denoised and written.
BATCH = 32
# Of one file and, nearly, of a batch. The longest of the published files have some 5 MB.
MOST_BYTES = 16 * 2**20


def read_missing(file: Path | None) -> set[str]:
    """Return the clip names of a published list of samples without usable skeletons, one per line.

    Header lines are left out; without a file the set is empty. Raises InputError if the file cannot
    be read.
    """
    if file is None:
        return set()
    try:
        words = read_text(file, MOST_BYTES).split()
    except Unreadable as error:
        raise InputError("missing", f"{file} {error}", "name a text file") from error
    return {word for word in words if word.startswith("S") and len(word) == 20}


def _next_batch(files: Iterator[Path]) -> list[tuple[Path, bytes | str]]:
    """Read the next files: so many, or so many bytes."""
    batch: list[tuple[Path, bytes | str]] = []
    size = 0
    for file in files:
        try:
            batch.append((file, read_bytes(file, MOST_BYTES)))
        except Unreadable as error:
            batch.append((file, str(error)))
        size += len(batch[-1][1])
        if len(batch) == BATCH or size >= MOST_BYTES:
            break
    return batch


def _parse_batch(files: Iterator[Path], threads: int) -> list[tuple[Path, Tracks | str]]:
    batch = _next_batch(files)
    parsed = iter(parse_all([text for _, text in batch if isinstance(text, bytes)], threads))
    return [(file, next(parsed) if isinstance(text, bytes) else text) for file, text in batch]


def parse_files(files: list[Path]) -> Iterator[tuple[Path, Tracks | str]]:
    """Read `.skeleton` files in order, one batch ahead of the caller."""
    threads = os.cpu_count() or 1
    coming = iter(files)
    with ThreadPoolExecutor(1) as ahead:
        waiting = ahead.submit(_parse_batch, coming, threads)
        while parsed := waiting.result():
            waiting = ahead.submit(_parse_batch, coming, threads)
            yield from parsed


def clip_of(parsed: Tracks | str) -> tuple[NDArray[np.float32] | None, str]:
    """Denoise the tracks of one file (method 1.3).

    Returns the clip (M, T, 25, 3), at most 300 frames, or None and the reason.
    """
    if isinstance(parsed, str):
        return None, parsed
    tracks, frames = parsed
    if not all(np.isfinite(track.joints_TV3).all() for track in tracks):
        return None, "NaN or infinite joints"
    clip = denoise(tracks, frames) if tracks else None
    if clip is None:
        return None, "no usable skeleton"
    return clip[:, :MAX_FRAMES].astype(np.float32), ""


def open_ntu(name: str, raw: Path, *, missing: Path | None = None) -> Source:
    """Open ntu60 or ntu120 from a folder of `.skeleton` files (searched recursively).

    Damaged files and those on the published list `missing` become skipped records. Raises
    InputError if the folder holds no such file.
    """
    files, closed = find_files(raw, ".skeleton")
    if not files:
        why = f" ({closed[0][0]}: {closed[0][1]})" if closed else ""
        fix = "name the folder of raw skeletons"
        raise InputError("raw", f"{raw} holds no .skeleton file{why}", fix)
    left_out, classes = read_missing(missing), CLASSES[name]
    splits = ntu60_splits if name == "ntu60" else ntu120_splits

    def refusal(file: Path) -> str:
        try:
            action = parse_ntu_name(file.stem).action
        except InputError:
            return "file name is not SsssCcccPpppRrrrAaaa"
        if file.stem in left_out:
            return "on the list of missing skeletons"
        return "" if 1 <= action <= classes else f"action {action} is not one of {classes}"

    def records(start: int = 0) -> Iterator[Record]:
        chosen = files[start:]
        refused = {file: reason for file in chosen if (reason := refusal(file))}
        parsed = parse_files([file for file in chosen if file not in refused])
        for file in chosen:
            if file in refused:
                yield Record(file.stem, None, 0, {}, refused[file])
                continue
            clip, reason = clip_of(next(parsed)[1])
            meta = asdict(parse_ntu_name(file.stem))
            yield Record(file.stem, clip, meta.pop("action") - 1, meta, reason)
        yield from closed_folders(closed, start - len(files))

    return Source(
        name=name,
        layout=NTU25,
        class_names=tuple(f"A{action:03d}" for action in range(1, classes + 1)),
        count=len(files) + len(closed),
        records=records,
        identity=identity_of([*files, *([missing] if missing else [])]),
        splits=lambda _, columns: splits(columns),
        fps=KINECT_FPS,
    )
