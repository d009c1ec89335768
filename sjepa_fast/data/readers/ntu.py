"""Raw NTU RGB+D `.skeleton` text files (Kinect v2: 25 joints, up to six body ids a file)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sjepa_fast.data.readers.ntu_denoise import Track, denoise, track_motion
from sjepa_fast.data.readers.record import Columns, Record, Source, Splits
from sjepa_fast.data.splits import ntu60_splits, ntu120_splits, parse_ntu_name
from sjepa_fast.errors import InputError
from sjepa_fast.skeletons import NTU25

CLASSES = {"ntu60": 60, "ntu120": 120}
MAX_FRAMES = 300
JOINTS = 25


def parse_skeleton(text: str) -> tuple[list[Track], int]:
    """Read one file: frame count; per frame a body count; per body a header, a joint count, joints.

    Frames without a body are dropped; a body id's interval starts at the valid-frame index of its
    first appearance and grows by one with each appearance.

    Args:
        text: Contents of a `.skeleton` file.

    Returns:
        One track for each body id, in order of appearance, and the number of valid frames.

    Raises:
        ValueError: If the text ends early or has a field that is no number.
    """
    lines = iter(text.split("\n"))

    def line() -> str:
        found = next(lines, None)
        if found is None or not found.strip():
            raise ValueError("the file ends early")
        return found

    rows: dict[str, list[list[list[float]]]] = {}
    starts: dict[str, int] = {}
    valid = 0
    for _ in range(int(line())):
        bodies = int(line())
        for _ in range(bodies):
            body = line().split()[0]
            count = int(line())
            if count != JOINTS:
                raise ValueError(f"a body has {count} joints, not {JOINTS}")
            joints = [[float(x) for x in line().split(maxsplit=3)[:3]] for _ in range(count)]
            starts.setdefault(body, valid)
            rows.setdefault(body, []).append(joints)
        valid += bodies > 0
    tracks = []
    for body, values in rows.items():
        joints_TV3 = np.array(values, dtype=np.float64)
        tracks.append(Track(joints_TV3, starts[body], track_motion(joints_TV3)))
    return tracks, valid


def read_missing(file: Path | None) -> set[str]:
    """Return the clip names of a list of samples without usable skeletons, one a line.

    Args:
        file: The list as published, or None.

    Returns:
        The names; header lines are passed over.

    Raises:
        InputError: If the file cannot be read.
    """
    if file is None:
        return set()
    try:
        words = file.read_text(encoding="utf-8").split()
    except OSError as error:
        raise InputError("missing", f"{file}: {error.strerror}", "name a text file") from error
    return {word for word in words if word.startswith("S") and len(word) == 20}


def open_ntu(name: str, raw: Path, missing: Path | None) -> Source:
    """Open a folder of `.skeleton` files (searched recursively).

    Args:
        name: ntu60 or ntu120.
        raw: The folder.
        missing: List of samples to leave out, as published with the data set.

    Returns:
        The opened set; damaged and listed files become skipped records.

    Raises:
        InputError: If the folder holds no such file.
    """
    files = sorted(raw.rglob("*.skeleton")) if raw.is_dir() else []
    if not files:
        raise InputError(
            "raw", f"{raw} holds no .skeleton file", "name the folder of raw skeletons"
        )
    left_out, classes = read_missing(missing), CLASSES[name]
    splits = ntu60_splits if name == "ntu60" else ntu120_splits

    def record(file: Path) -> Record:
        try:
            parts = parse_ntu_name(file.stem)
        except InputError:
            return Record(file.stem, None, 0, {}, "file name is not SsssCcccPpppRrrrAaaa")
        meta = {
            "setup": parts.setup,
            "camera": parts.camera,
            "subject": parts.subject,
            "repetition": parts.repetition,
        }
        label = parts.action - 1
        reason, clip = "", None
        if file.stem in left_out:
            reason = "on the list of missing skeletons"
        elif label >= classes:
            reason = f"action {parts.action} is not one of {classes}"
        else:
            try:
                tracks, frames = parse_skeleton(file.read_text(encoding="ascii"))
            except (OSError, ValueError, IndexError) as error:
                return Record(file.stem, None, label, meta, str(error))
            clip = denoise(tracks, frames) if tracks else None
            reason = "" if clip is not None else "no usable skeleton"
        if clip is None:
            return Record(file.stem, None, label, meta, reason)
        if not np.isfinite(clip).all():
            return Record(file.stem, None, label, meta, "NaN or infinite joints")
        return Record(file.stem, clip[:, :MAX_FRAMES].astype(np.float32), label, meta)

    def records() -> Iterator[Record]:
        for file in files:
            yield record(file)

    def make_splits(_: list[str], columns: Columns) -> Splits:
        return splits(columns)

    return Source(
        name=name,
        layout=NTU25,
        class_names=tuple(f"A{action:03d}" for action in range(1, classes + 1)),
        count=len(files),
        records=records,
        splits=make_splits,
    )
