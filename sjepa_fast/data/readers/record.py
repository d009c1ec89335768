# SPDX-License-Identifier: Apache-2.0
"""The records that every reader yields, and the description of its data set."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.data.clip_table import MAX_CLASSES
from sjepa_fast.data.safe_files import state_of
from sjepa_fast.data.store_schema import PooledSet
from sjepa_fast.errors import InputError
from sjepa_fast.names import printable
from sjepa_fast.opening import Unreadable
from sjepa_fast.skeletons import SkeletonLayout

# Coordinates of one clip, over all bodies, frames and joints: for 25 joints in space half an hour
# of one body at 30 frames a second. What a reader holds at once is a small multiple of it.
MAX_NUMBERS = 2**22
MAX_SPLITS = 100
# What Kinect v2 sends in a second (NTU RGB+D, PKU-MMD).
KINECT_FPS = 30.0
# Names of splits and columns, which become names of files.
SPLIT_NAME = r"[\w-]{1,100}"

Columns = dict[str, NDArray[np.int64]]
Splits = dict[str, NDArray[np.int8]]


@dataclass(frozen=True)
class Record:
    """One clip, or one input that is left out."""

    name: str
    # (M, T, V, 3) metres, y up; None for an input that is skipped.
    clip_MTVC: NDArray[np.float32] | None
    label: int | None  # from 0; None for a clip without a label
    meta: dict[str, int]  # integer columns, the same for all records of a reader
    reason: str = ""  # why it is skipped; empty for a clip


class Records(Protocol):
    """Yields the records in a fixed order, without the first `start` of them."""

    def __call__(self, start: int = 0) -> Iterator[Record]:
        """Begin a pass over the raw data."""
        ...


@dataclass(frozen=True)
class Source:
    """An opened raw data set."""

    name: str  # name of the data set
    layout: SkeletonLayout  # joints after reading
    class_names: tuple[str, ...]  # one name per label
    count: int  # records to expect, for the progress bar
    records: Records
    identity: str  # changes with the raw files, so that a run cannot resume one with other files
    # Makes the splits from the names and columns of the clips that were kept.
    splits: Callable[[list[str], Columns], Splits]
    note: str = ""  # what was found out of the raw data and should be known
    fps: float = 0.0  # frames per second; 0 where the raw data do not say it
    sets: tuple[PooledSet, ...] = ()  # of a pool of stores


def numbered_classes(labels: Iterable[int]) -> tuple[str, ...]:
    """Name the classes 0 to the largest label; one below 0 has none and is refused by the store.

    Raises InputError if a label is so large that it can only be a mistake.
    """
    most = max(labels, default=-1)
    if most >= MAX_CLASSES:
        raise InputError("raw", f"label {most}", f"number the classes 0..{MAX_CLASSES - 1}")
    return tuple(str(i) for i in range(most + 1))


def identity_of(files: Iterable[Path]) -> str:
    """Return a digest of the files' paths, sizes and times of change; nothing is read."""
    digest = hashlib.sha256()
    for file in files:
        size, changed = state_of(file)
        digest.update(os.fsencode(file) + f"\0{size}\0{changed}\n".encode())
    return digest.hexdigest()


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn `Unreadable` into InputError where one file is the whole set."""
    try:
        yield
    except Unreadable as error:
        raise InputError(
            "raw", f"{path} {error}", "name a readable file, or fetch it again"
        ) from error


def closed_folders(closed: list[tuple[Path, str]], start: int) -> Iterator[Record]:
    """Yield a skipped record for each folder that could not be listed, behind all files."""
    for folder, reason in closed[max(start, 0) :]:
        yield Record(str(folder), None, 0, {}, f"folder cannot be listed: {reason}")


def set_name(name: str) -> str:
    """Return the name of a data set that is called like its file or folder."""
    # An escape has a backslash, which the name of a store may not have.
    return printable(name, 120).replace("\\", "_") or "clips"


def two_parts(train: NDArray[np.bool_]) -> NDArray[np.int8]:
    """Return split codes: 1 where the clip trains, 2 elsewhere."""
    return np.where(train, 1, 2).astype(np.int8)
