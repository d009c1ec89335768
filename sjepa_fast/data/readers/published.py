# SPDX-License-Identifier: Apache-2.0
"""Published sizes of data sets, to compare with a prepared store (method 1.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sjepa_fast.data.readers.record import Splits

Sizes = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Published:
    """Clips of a whole set, and (train, test) of its splits."""

    clips: int
    splits: Sizes


# The counts of PKU-MMD are the literature's, not counted from files.
PUBLISHED = {
    "ntu60": Published(56_578, {"xsub": (40_091, 16_487), "xview": (37_646, 18_932)}),
    "ntu120": Published(113_945, {"xsub": (63_026, 50_919), "xset": (54_468, 59_477)}),
    "pku1": Published(21_545, {"xsub": (18_841, 2_704)}),
    "pku2": Published(6_945, {"xsub": (5_332, 1_613)}),
    "nucla": Published(1_484, {"xview": (1_020, 464)}),
}


def split_sizes(splits: Splits) -> Sizes:
    """Return (train, test) of each split."""
    return {key: (int(np.sum(c == 1)), int(np.sum(c == 2))) for key, c in splits.items()}


def compare(name: str, inputs: int, clips: int, splits: Splits) -> str:
    """Say in one line how a prepared set compares with the published one.

    The line begins with "warning:" where a full set was given (by its `inputs`, left out or not)
    and the counts differ; it is empty for a set without published counts.
    """
    published = PUBLISHED.get(name)
    if published is None:
        return ""
    found = split_sizes(splits)
    wrong = [
        f"{key} {found.get(key, (0, 0))} not {sizes}"
        for key, sizes in published.splits.items()
        if found.get(key) != sizes
    ]
    if clips == published.clips and not wrong:
        return f"the {clips} clips and their splits have the published sizes"
    if inputs < published.clips:
        return f"note: a part of {name}; the whole set has {published.clips} clips"
    hint = "; give --missing with the published list" if name.startswith("ntu") else ""
    parts = ", ".join([f"{clips} clips not {published.clips}", *wrong])
    return f"warning: {name} differs from the published set: {parts}{hint}"
