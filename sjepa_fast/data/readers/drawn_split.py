# SPDX-License-Identifier: Apache-2.0
"""Splits that are drawn, for raw data without one: by clip, or by subject or another column."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.data.clip_table import ClipTable
from sjepa_fast.data.readers.record import Source, Splits
from sjepa_fast.errors import InputError

RANDOM = "random"
_TRAIN, _TEST = 1, 2


@dataclass(frozen=True)
class Draw:
    """Which split to draw of the clips, and how; see `draw_split`."""

    by: str = ""  # empty: only where the raw data have no split, by `default_way`
    test_share: float = 0.2
    seed: int = 0

    def check(self, source: Source) -> None:
        """Raise InputError if none can be drawn so; reads up to the first clip, if it must."""
        if not 0 <= self.test_share < 1:
            raise InputError("test_share", self.test_share, "give a share from 0 to below 1")
        if self.seed < 0:
            raise InputError("seed", self.seed, "give 0 or more")
        if self.by not in ("", RANDOM):
            clips = (record for record in source.records() if record.clip_MTVC is not None)
            check_way(self.by, sorted(next((clip.meta for clip in clips), {})))

    def splits_of(self, table: ClipTable, source: Source) -> tuple[Splits, str]:
        """Make the splits of the clips that were kept, with one that is drawn if it is wanted.

        Returns them, and by which flags one was drawn, empty if none was. Raises InputError if none
        can be drawn as it is wanted.
        """
        if not table.names:
            return {}, ""
        splits = source.splits(list(table.names), table.columns())
        if splits and not self.by:
            return splits, ""
        by = self.by or default_way(table)
        if by in splits:
            fix = "leave --split-by away, or draw it by another column"
            raise InputError("split_by", f"the raw data have a split {by}", fix)
        drawn = draw_split(table, by, self.test_share, self.seed)
        flags = f"--split-by {by} --test-share {self.test_share:g} --seed {self.seed}"
        return {**splits, by: drawn}, flags


def default_way(table: ClipTable) -> str:
    """Return `subject` where the clips are of several subjects, else `random`."""
    return "subject" if len(set(table.meta.get("subject", ()))) > 1 else RANDOM


def check_way(by: str, columns: list[str]) -> None:
    """Raise InputError if clips with these columns cannot be split so."""
    if by != RANDOM and by not in columns:
        own = ", ".join([RANDOM, *columns])
        raise InputError("split_by", f"{by} is no column of the clips", f"use one of {own}")


def draw_split(table: ClipTable, by: str, test_share: float, seed: int) -> NDArray[np.int8]:
    """Draw the test part of a split; the same for the same clips, share and seed.

    Args:
        table: The clips.
        by: `random`, which draws that share of the clips, of each class as nearly as whole clips
            allow; or a column, such as subject, of whose values that share is drawn, so that no
            subject is in both parts.
        test_share: From 0, which tests none, to below 1. Both parts have one at least otherwise.
        seed: Names the draw.

    Returns:
        (N,) codes: 1 train, 2 test.

    Raises:
        InputError: If there is no such column, or it has one value only.
    """
    check_way(by, list(table.meta))
    key = hashlib.sha256(f"{by} {test_share!r} {seed}".encode()).digest()[:16]
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
    if by == RANDOM:
        order = _evenly(np.array(table.labels), generator)
        tested = order[: _count(len(order), test_share)]
        return np.where(np.isin(np.arange(len(order)), tested), _TEST, _TRAIN).astype(np.int8)
    values = np.array(table.meta[by])
    groups = np.unique(values)
    if len(groups) < 2:
        value = f"{by}, which is {groups[0]} for every clip"
        raise InputError("split_by", value, f"use {RANDOM}, or another column")
    tested = generator.permutation(groups)[: _count(len(groups), test_share)]
    return np.where(np.isin(values, tested), _TEST, _TRAIN).astype(np.int8)


def _count(total: int, share: float) -> int:
    return 0 if share == 0 or total < 2 else min(max(round(total * share), 1), total - 1)


def _evenly(labels_N: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """Order clips so that each beginning has every class by its share."""
    drawn = generator.permutation(len(labels_N))
    place = np.empty(len(labels_N))
    for label in np.unique(labels_N):
        own = drawn[labels_N[drawn] == label]
        place[own] = (np.arange(len(own)) + 0.5) / len(own)
    return drawn[np.argsort(place[drawn], kind="stable")]
