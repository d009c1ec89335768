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
from sjepa_fast.data.readers.record import Record, Source, identity_of
from sjepa_fast.errors import InputError
from sjepa_fast.skeletons import NTU25

CLASSES = {"ntu60": 60, "ntu120": 120}
MAX_FRAMES = 300
# Files that are read and parsed together, while the batch before them is denoised and written.
BATCH = 32


def read_missing(file: Path | None) -> set[str]:
    """Return the clip names of a published list of samples without usable skeletons, one per line.

    Header lines are left out; without a file the set is empty. Raises InputError if the file cannot
    be read.
    """
    if file is None:
        return set()
    try:
        words = file.read_text(encoding="utf-8").split()
    except OSError as error:
        raise InputError("missing", f"{file}: {error.strerror}", "name a text file") from error
    return {word for word in words if word.startswith("S") and len(word) == 20}


def _read(file: Path) -> bytes | str:
    try:
        return file.read_bytes()
    except OSError as error:
        return error.strerror or str(error)


def _parse_batch(files: list[Path], threads: int) -> list[Tracks | str]:
    texts = [_read(file) for file in files]
    parsed = iter(parse_all([text for text in texts if isinstance(text, bytes)], threads))
    return [next(parsed) if isinstance(text, bytes) else text for text in texts]


def parse_files(files: list[Path]) -> Iterator[tuple[Path, Tracks | str]]:
    """Read `.skeleton` files in order, one batch ahead of the caller."""
    threads = os.cpu_count() or 1
    batches = [files[i : i + BATCH] for i in range(0, len(files), BATCH)]
    with ThreadPoolExecutor(1) as ahead:
        waiting = [ahead.submit(_parse_batch, batch, threads) for batch in batches[:1]]
        for batch, coming in zip(batches, [*batches[1:], []], strict=True):
            parsed = waiting.pop().result()
            waiting.append(ahead.submit(_parse_batch, coming, threads))
            yield from zip(batch, parsed, strict=True)


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
    files = sorted(raw.rglob("*.skeleton")) if raw.is_dir() else []
    if not files:
        fix = "name the folder of raw skeletons"
        raise InputError("raw", f"{raw} holds no .skeleton file", fix)
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

    return Source(
        name=name,
        layout=NTU25,
        class_names=tuple(f"A{action:03d}" for action in range(1, classes + 1)),
        count=len(files),
        records=records,
        identity=identity_of([*files, *([missing] if missing else [])]),
        splits=lambda _, columns: splits(columns),
    )
