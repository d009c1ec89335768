"""What every reader yields, and what it says about its data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.skeletons import SkeletonLayout

Columns = dict[str, NDArray[np.int64]]
Splits = dict[str, NDArray[np.int8]]


@dataclass(frozen=True)
class Record:
    """One clip, or one input that is left out.

    Attributes:
        name: Unique name.
        clip_MTVC: (M, T, V, 3) metres, y up; None for an input that is skipped.
        label: From 0.
        meta: Integer columns, the same for all records of a reader.
        reason: Why it is skipped; empty for a clip.
    """

    name: str
    clip_MTVC: NDArray[np.float32] | None
    label: int
    meta: dict[str, int]
    reason: str = ""


@dataclass(frozen=True)
class Source:
    """An opened raw data set.

    Attributes:
        name: Name of the data set.
        layout: Joints after reading.
        class_names: One name a label.
        count: Records to expect, for the progress bar.
        records: Yields them.
        splits: Makes the splits from the names and columns of the clips that were kept.
    """

    name: str
    layout: SkeletonLayout
    class_names: tuple[str, ...]
    count: int
    records: Callable[[], Iterator[Record]]
    splits: Callable[[list[str], Columns], Splits]


def two_parts(train: NDArray[np.bool_]) -> NDArray[np.int8]:
    """Return split codes: 1 where the clip trains, 2 elsewhere."""
    return np.where(train, 1, 2).astype(np.int8)
