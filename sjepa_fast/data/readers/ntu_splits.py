# SPDX-License-Identifier: Apache-2.0
"""The published splits of NTU RGB+D, derived from the clip names (method 1.2)."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.data.readers.record import Columns, Splits, two_parts
from sjepa_fast.errors import InputError

NTU60_TRAIN_SUBJECTS = (1, 2, 4, 5, 8, 9, *range(13, 20), 25, 27, 28, 31, 34, 35, 38)
NTU120_TRAIN_SUBJECTS = (
    *NTU60_TRAIN_SUBJECTS,
    *(45, 46, 47, 49, 50, *range(52, 60), 70, 74, 78, *range(80, 87), 89),
    *(91, 92, 93, 94, 95, 97, 98, 100, 103),
)


@dataclass(frozen=True)
class NtuName:
    """Setup, camera, subject, repetition and action of a name SsssCcccPpppRrrrAaaa, from 1."""

    setup: int
    camera: int
    subject: int
    repetition: int
    action: int


def parse_ntu_name(name: str) -> NtuName:
    """Read the five numbers of an NTU clip name, such as S001C002P003R002A013.

    Raises InputError if the name has another form.
    """
    found = re.fullmatch(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})", name)
    if found is None:
        raise InputError("name", name, "expected the form S001C002P003R002A013")
    return NtuName(*(int(number) for number in found.groups()))


def _member(values: NDArray[np.int64], chosen: tuple[int, ...]) -> NDArray[np.bool_]:
    return np.isin(values, chosen)


def ntu60_splits(columns: Columns) -> Splits:
    """Cross-subject (20 train subjects) and cross-view (cameras 2 and 3 train)."""
    return {
        "xsub": two_parts(_member(columns["subject"], NTU60_TRAIN_SUBJECTS)),
        "xview": two_parts(_member(columns["camera"], (2, 3))),
    }


def ntu120_splits(columns: Columns) -> Splits:
    """Cross-subject (53 train subjects) and cross-setup (even setups train)."""
    return {
        "xsub": two_parts(_member(columns["subject"], NTU120_TRAIN_SUBJECTS)),
        "xset": two_parts(columns["setup"] % 2 == 0),
    }
