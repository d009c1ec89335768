# SPDX-License-Identifier: Apache-2.0
"""PKU-MMD I and II: long recordings as text with a list of action intervals each, cut into clips.

A recording `0002-L.txt` (part I) or `A01N02-L.txt` (part II) has 150 numbers per frame: two bodies
of 25 joints, the second zero where there is one person. Its label file of the same name, in a
folder whose name says "label", has `class,start,end,confidence` lines. The frames of a clip are
start to end - 1; there is no denoising and no centering (method 1.3).

Part I is also distributed as clips named FxxxVxxxCxxxLxxx.skeleton: recording, view (1 left, 2
middle, 3 right), class and position in the recording.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.data.readers.ntu_text import text_lines
from sjepa_fast.data.readers.record import (
    KINECT_FPS,
    MAX_NUMBERS,
    Columns,
    Record,
    Records,
    Source,
    Splits,
    closed_folders,
    identity_of,
    two_parts,
)
from sjepa_fast.data.safe_files import find_files, read_text
from sjepa_fast.errors import InputError
from sjepa_fast.opening import Unreadable
from sjepa_fast.skeletons import NTU25

CLASSES = 51
MAX_FRAMES = 300
WIDTH = 150
# Of one recording: a quarter of an hour, and bytes enough for it. Of a cut clip and a label file.
MOST_FRAMES = MAX_NUMBERS // WIDTH
MOST_BYTES = 64 * 2**20
MOST_LINE = 100 * WIDTH
MOST_CUT = 16 * 2**20
MOST_LABELS = 2**20
MOST_CUTS = 10_000
VIEWS = {"L": 1, "M": 2, "R": 3}
NAMES = {
    "pku1": r"(?P<video>\d{4})-(?P<view>[LMR])",
    "pku2": r"A(?P<group>\d+)N(?P<subject>\d+)-(?P<view>[LMR])",
}
CUT_NAME = r"F(?P<video>\d{3})V(?P<view>\d{3})C(?P<label>\d{3})L\d{3}"
# Method 1.2: recordings (part I) and subjects (part II) of the test parts.
TEST_VIDEOS = range(291, 335)
TEST_SUBJECTS = (2, 3, 7)


@dataclass(frozen=True)
class Cut:
    """One clip to be cut out of a recording, or why it cannot be."""

    name: str
    file: Path
    meta: dict[str, int]
    label: int = 0
    start: int = 0
    end: int = 0
    reason: str = ""


def _meta(name: str, stem: str) -> dict[str, int]:
    found = re.fullmatch(NAMES[name], stem)
    assert found is not None
    parts = found.groupdict()
    return {key: VIEWS[value] if key == "view" else int(value) for key, value in parts.items()}


def _cuts(name: str, file: Path, labels: Path | None) -> list[Cut]:
    meta = _meta(name, file.stem)
    if labels is None:
        return [Cut(file.stem, file, meta, reason="no label file of this name")]
    try:
        lines = read_text(labels, MOST_LABELS, "ascii").split("\n")
    except Unreadable as error:
        return [Cut(file.stem, file, meta, reason=f"label file {error}")]
    if len(lines) > MOST_CUTS:
        return [Cut(file.stem, file, meta, reason=f"label file has more than {MOST_CUTS} lines")]
    cuts: list[Cut] = []
    for line in filter(str.strip, lines):
        clip = f"{file.stem}-{len(cuts):03d}"
        try:
            # Some releases write the numbers with a decimal point.
            action, start, end = (int(float(word)) for word in line.split(",")[:3])
        except (ValueError, OverflowError):
            cuts.append(Cut(clip, file, meta, reason=f"label line {line.strip()[:80]!r}"))
            continue
        reason = "" if 1 <= action <= CLASSES else f"class {action} is not one of {CLASSES}"
        cuts.append(Cut(clip, file, meta, action - 1, start, end, reason))
    return cuts


def _frames(file: Path) -> NDArray[np.float64] | str:
    """One recording as (frames, 150), or why it cannot be used."""
    try:
        text = read_text(file, MOST_BYTES, "ascii")
        if text.count("\n") > 2 * MOST_FRAMES:
            return f"more than {MOST_FRAMES} frames"
        rows = [line for line in text.split("\n") if line.strip()]
        if not rows:
            return "the file is empty"
        if max(map(len, rows)) > MOST_LINE:
            return f"a line of more than {MOST_LINE} characters"
        frames = np.loadtxt(rows, dtype=np.float64, ndmin=2, comments=None)
    except ValueError as error:  # of the text, or Unreadable
        return str(error)
    if frames.shape[1] != WIDTH:
        return f"{frames.shape[1]} numbers per frame, not {WIDTH}"
    return frames


def clip_of(frames_TN: NDArray[np.float64]) -> tuple[NDArray[np.float32] | None, str]:
    """Turn frames of 150 numbers into a clip; a second body that is all zero is none.

    Returns (M, T, 25, 3) of at most 300 frames, or None and the reason.
    """
    if not np.isfinite(frames_TN).all():
        return None, "NaN or infinite joints"
    if not frames_TN.any():
        return None, "no usable skeleton"
    bodies = frames_TN[:MAX_FRAMES].reshape(-1, 2, 25, 3).transpose(1, 0, 2, 3)
    kept = bodies if bodies[1].any() else bodies[:1]
    return np.ascontiguousarray(kept, dtype=np.float32), ""


def parse_cut(text: str) -> NDArray[np.float64]:
    """Read an FxxxVxxxCxxxLxxx file: frames; bodies; one header; joint count; joints of all bodies.

    Returns (T, 150). Raises ValueError if the text ends early or has a field that is no number.
    """
    lines = text_lines(text)
    try:
        frames = int(next(lines))
        # A frame has three lines at least.
        if not 0 < frames <= min(MOST_FRAMES, text.count("\n") // 3 + 1):
            raise ValueError(f"{frames} frames in {text.count(chr(10))} lines")
        rows = np.zeros((frames, 2, 25, 3))
        for frame in rows:
            bodies = int(next(lines))
            next(lines)
            if not 0 <= bodies <= 2 or int(next(lines)) != 25:
                raise ValueError(f"{bodies} bodies, or not 25 joints")
            for body in frame[:bodies]:
                for joint in body:
                    x, y, z = (float(word) for word in next(lines).split()[:3])
                    joint[:] = x, y, z
    except StopIteration:
        raise ValueError("the file ends early") from None
    return rows.reshape(-1, WIDTH)


def _record(cut: Cut, frames: NDArray[np.float64] | str) -> Record:
    if isinstance(frames, str):
        return Record(cut.name, None, cut.label, cut.meta, frames)
    if not 0 <= cut.start < cut.end <= len(frames):
        reason = f"frames {cut.start} to {cut.end} of {len(frames)}"
        return Record(cut.name, None, cut.label, cut.meta, reason)
    clip, reason = clip_of(frames[cut.start : cut.end])
    return Record(cut.name, clip, cut.label, cut.meta, reason)


def _listed(raw: Path, kind: str, names: list[str]) -> NDArray[np.int8] | None:
    # The release's own split list: its second line names the recordings that train.
    for file in find_files(raw, ".txt")[0]:
        if re.match(rf"cross[-_]?{kind}", file.stem, re.IGNORECASE):
            try:
                lines = read_text(file, MOST_LABELS, "latin-1").split("\n")
            except Unreadable as error:
                raise InputError("raw", f"{file} {error}", "mend or remove the list") from error
            train = {word.strip() for word in lines[1].split(",")} if len(lines) > 1 else set()
            return two_parts(np.array([name.rpartition("-")[0] in train for name in names]))
    return None


def _splits(name: str, columns: Columns) -> Splits:
    if name == "pku1":
        subject = two_parts(~np.isin(columns["video"], TEST_VIDEOS))
    else:
        subject = two_parts(~np.isin(columns["subject"], TEST_SUBJECTS))
    return {"xsub": subject, "xview": two_parts(columns["view"] != VIEWS["L"])}


def _cut_clips(files: list[Path], closed: list[tuple[Path, str]]) -> Records:
    def records(start: int = 0) -> Iterator[Record]:
        for file in files[start:]:
            parts = re.fullmatch(CUT_NAME, file.stem)
            if parts is None:
                yield Record(file.stem, None, 0, {}, "file name is not FxxxVxxxCxxxLxxx")
                continue
            meta = {"video": int(parts["video"]), "view": int(parts["view"])}
            try:
                clip, reason = clip_of(parse_cut(read_text(file, MOST_CUT, "ascii")))
            except ValueError as error:  # of the text, or Unreadable
                clip, reason = None, str(error)
            yield Record(file.stem, clip, int(parts["label"]) - 1, meta, reason)
        yield from closed_folders(closed, start - len(files))

    return records


def _recordings(cuts: list[Cut], closed: list[tuple[Path, str]]) -> Records:
    def records(start: int = 0) -> Iterator[Record]:
        # Cuts of one recording follow each other, so each is read once.
        for file, group in groupby(cuts[start:], key=lambda cut: cut.file):
            chosen = list(group)
            wanted = any(not cut.reason for cut in chosen)
            frames = _frames(file) if wanted else ""
            for cut in chosen:
                yield _record(cut, cut.reason or frames)
        yield from closed_folders(closed, start - len(cuts))

    return records


def open_pku(name: str, raw: Path) -> Source:
    """Open pku1 or pku2 (searched recursively): recordings with label files, or (pku1) cut clips.

    The splits xsub and xview are the release's own lists where the folder has them
    (`cross-subject*.txt`, `cross-view*.txt`), else the published rule. Raises InputError if the
    folder holds neither recordings nor clips.
    """
    listed, closed = find_files(raw, ".txt")
    texts = [file for file in listed if re.fullmatch(NAMES[name], file.stem)]
    labels = {file.stem: file for file in texts if "label" in file.parent.name.lower()}
    videos = [file for file in texts if "label" not in file.parent.name.lower()]
    found = find_files(raw, ".skeleton")[0] if name == "pku1" else []
    clips = [file for file in found if file.name.startswith("F")]
    if not videos and not clips:
        fix = "name the folder that holds the skeleton and the label folder"
        raise InputError("raw", f"{raw} holds no PKU-MMD text of {name}", fix)
    cuts = [cut for file in videos for cut in _cuts(name, file, labels.get(file.stem))]

    def splits(names: list[str], columns: Columns) -> Splits:
        found = _splits(name, columns)
        for key, kind in (("xsub", "subject"), ("xview", "view")) if videos else ():
            listed = _listed(raw, kind, names)
            found[key] = found[key] if listed is None else listed
        return found

    return Source(
        name=name,
        layout=NTU25,
        class_names=tuple(f"A{action:03d}" for action in range(1, CLASSES + 1)),
        count=len(cuts if videos else clips) + len(closed),
        records=_recordings(cuts, closed) if videos else _cut_clips(clips, closed),
        identity=identity_of([*texts, *clips]),
        splits=splits,
        fps=KINECT_FPS,
    )
