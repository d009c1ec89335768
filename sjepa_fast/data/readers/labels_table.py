# SPDX-License-Identifier: Apache-2.0
"""`labels.csv` of your own clips: names, and what is known of each clip.

The column `name` names the clips. A column `label` has numbers from 0, or words; an empty cell is a
clip without a label, and so are all clips without the column. A column `split`, or several
`split_NAME`, says train, test or nothing; further columns hold whole numbers, such as subject.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from sjepa_fast.data.readers.record import SPLIT_NAME, Splits, numbered_classes
from sjepa_fast.data.safe_files import read_text
from sjepa_fast.errors import InputError
from sjepa_fast.opening import Unreadable

LABELS = "labels.csv"
MOST_LABELS = 64 * 2**20  # bytes
MAX_COLUMNS, MAX_CELLS = 64, 2**21
PARTS = {"train": 1, "test": 2, "": 0}


@dataclass(frozen=True)
class LabelsTable:
    """What is known of the clips, row by row."""

    names: list[str]
    labels: list[int | None]
    class_names: tuple[str, ...]
    meta: list[dict[str, int]]
    parts: list[dict[str, str]]  # by the name of each split: train, test or nothing

    def splits(self, names: list[str]) -> Splits:
        """Return the splits of those clips that were kept; of a name that is twice, the first."""
        chosen = dict(zip(reversed(self.names), reversed(self.parts), strict=True))
        return {
            key: np.array([PARTS[chosen[name][key]] for name in names], dtype=np.int8)
            for key in self.parts[0]
        }


def table_of(names: list[str]) -> LabelsTable:
    """Return the table of clips of which only the names are known."""
    return LabelsTable(names, [None] * len(names), (), [{} for _ in names], [{} for _ in names])


def read_table(file: Path) -> LabelsTable:
    """Read a `labels.csv`. Raises InputError, with the line, if it is malformed."""
    rows = _rows(file)
    split_keys, meta_keys = _check_columns(rows)
    labels, class_names = _labels(rows)
    named = {key: key.removeprefix("split_").replace("split", "default") for key in split_keys}
    return LabelsTable(
        names=[row["name"] for row in rows],
        labels=labels,
        class_names=class_names,
        meta=[{key: int(row[key]) for key in meta_keys} for row in rows],
        parts=[{name: row[key] for key, name in named.items()} for row in rows],
    )


def _rows(file: Path) -> list[dict[str, str]]:
    try:
        text = read_text(file, MOST_LABELS, "utf-8-sig")
        table = csv.DictReader(io.StringIO(text, newline=""), restval="")
        keys = [key for key in table.fieldnames or [] if key]
        if len(keys) > MAX_COLUMNS:
            raise Unreadable(f"has {len(keys)} columns; at most {MAX_COLUMNS} are read")
        if "name" not in keys:
            raise InputError("raw", f"{file} has no column name", "see docs/data.md")
        most = MAX_CELLS // len(keys)
        rows = [{key: row[key].strip() for key in keys} for row in islice(table, most + 1)]
    except (Unreadable, csv.Error) as error:
        raise InputError("raw", f"{file} {error}", "mend it, or leave it away") from error
    if not rows:
        raise InputError("raw", f"{file} has no rows", "give a row for each clip, or leave it away")
    if len(rows) > most:
        raise InputError("raw", f"{file} has more than {most} rows", "split the set")
    return rows


def _labels(rows: list[dict[str, str]]) -> tuple[list[int | None], tuple[str, ...]]:
    words = [row.get("label", "") for row in rows]
    try:
        numbers = [int(word) if word else None for word in words]
    except ValueError:
        names = sorted({word for word in words if word})
        index = {word: i for i, word in enumerate(names)}
        return [index.get(word) for word in words], tuple(names)
    return numbers, numbered_classes(number for number in numbers if number is not None)


def _check_columns(rows: list[dict[str, str]]) -> tuple[list[str], list[str]]:
    keys = list(rows[0])
    splits = [key for key in keys if key == "split" or key.startswith("split_")]
    meta = [key for key in keys if key not in ("name", "label", *splits)]
    for key in (*meta, *splits):
        if re.fullmatch(SPLIT_NAME, key) is None:
            fix = "name columns with at most 100 letters, digits, _ and -"
            raise InputError("raw", f"column {key!r} of {LABELS}", fix)
    for line, row in enumerate(rows, 2):
        for key in splits:
            if row[key] not in PARTS:
                value = f"line {line} of {LABELS}: {key} {row[key]!r}"
                raise InputError("raw", value, "write train, test or nothing")
        for key in meta:
            if re.fullmatch(r"-?[0-9]{1,18}", row[key]) is None:
                value = f"line {line} of {LABELS}: {key} {row[key]!r}"
                raise InputError("raw", value, "further columns hold whole numbers")
    return splits, meta
