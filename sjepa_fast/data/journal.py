# SPDX-License-Identifier: Apache-2.0
"""The journal of an unfinished store: its inputs so far, so that a killed run can be resumed.

One JSON line for the job (any other job starts afresh), then one for each clip or skipped input,
written only after the clip's rows have reached the disk.
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path

from sjepa_fast.data.clip_table import NO_LABEL, ClipTable, Entry, is_name
from sjepa_fast.data.safe_files import parse_json
from sjepa_fast.errors import InputError
from sjepa_fast.opening import Unreadable

NAME = "journal.jsonl"


class Journal:
    """The journal of one folder; holds a lock on it while open.

    `key` identifies the job: raw data, settings, version. Raises InputError if another process
    works on the folder.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.key = key
        self.waiting: list[str] = []
        self.file = (folder / NAME).open("a+", encoding="utf-8", errors="replace")
        if not _lock(self.file.fileno()):
            self.file.close()
            raise InputError("out", f"another run is writing {folder}", "wait for it, or end it")

    def replay(self, table: ClipTable, rows_on_disk: int) -> int:
        """Fill an empty table with the inputs that an earlier run of the job wrote or skipped.

        Clips beyond the rows on disk are left out. Returns the number of inputs that need not be
        read again.
        """
        self.file.seek(0)
        lines = self.file.read().splitlines()
        kept = lines[:1] if lines[:1] == [self._head()] else []
        for line in lines[1:] if kept else []:
            if not _replay_line(line, table, rows_on_disk):
                break  # the last line of a run that was killed may be torn
            kept.append(line)
        self.file.seek(0)
        self.file.truncate()
        self.file.write("".join(f"{line}\n" for line in kept or [self._head()]))
        self.file.flush()
        return max(len(kept) - 1, 0)

    def note(self, entry: tuple[object, ...]) -> None:
        """Remember one input until `sync`."""
        self.waiting.append(json.dumps(entry))

    def sync(self) -> None:
        """Write the remembered inputs; call it when their rows are on disk."""
        self.file.write("".join(f"{line}\n" for line in self.waiting))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.waiting.clear()

    def close(self) -> None:
        """Release the lock."""
        self.file.close()

    def _head(self) -> str:
        return json.dumps({"job": self.key})


def _replay_line(line: str, table: ClipTable, rows_on_disk: int) -> bool:
    """Add the input of one line to the table, or return False if it is torn or of another table."""
    try:
        entry = parse_json(line.encode())
    except Unreadable:
        return False
    if not isinstance(entry, list):
        return False
    if len(entry) == 2 and all(isinstance(part, str) and part.isprintable() for part in entry):
        # As it was shortened for printing already; a second time would say another length.
        table.skipped.append((entry[0], entry[1]))
        return True
    clip = _entry_of(entry)
    if clip is None or clip[0] in table.names or table.rows + clip[1] * clip[2] > rows_on_disk:
        return False
    if clip[3] >= len(table.class_names) or (table.names and set(clip[4]) != set(table.meta)):
        return False
    table.append(clip)
    return True


def _entry_of(entry: list[object]) -> Entry | None:
    if len(entry) != 5:
        return None
    name, bodies, frames, label, meta = entry
    numbers = (bodies, frames, label)
    if not isinstance(name, str) or not is_name(name) or not isinstance(meta, dict):
        return None
    if not all(type(n) is int and abs(n) < 2**63 for n in (*numbers, *meta.values())):
        return None
    assert isinstance(bodies, int) and isinstance(frames, int) and isinstance(label, int)
    fits = min(bodies, frames) >= 1 and label >= NO_LABEL
    return (name, bodies, frames, label, meta) if fits else None


def _lock(handle: int) -> bool:
    # Released by the system when the process ends, however it ends. Windows has no such call.
    if os.name != "posix":
        return True
    fcntl = importlib.import_module("fcntl")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
