# SPDX-License-Identifier: Apache-2.0
"""Opens strangers' files: regular ones of bounded size, and one exception for all that is not.

A FIFO would wait for ever, a device never ends, and a few megabytes of brackets become gigabytes of
objects. Readers of raw data and of stores open files here and in `safe_arrays`, and nowhere else.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from sjepa_fast.opening import Unreadable, reason_of, regular_handle

# A byte of JSON takes up to four in memory as text, and a value up to a hundred.
JSON_BYTES = 32 * 2**20
JSON_VALUES = 3 * 2**20


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; see `regular_handle`."""
    return os.fdopen(regular_handle(path), "rb")


def read_bytes(path: Path, most: int) -> bytes:
    """Return the content of a regular file. Raises Unreadable if it has more than `most` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise Unreadable(f"has {size} bytes; at most {most} are read")
        try:
            # One byte more: some files have no size, others grow.
            data = file.read(size + 1)
        except OSError as error:
            raise Unreadable(reason_of(error)) from error
    if len(data) != size:
        raise Unreadable(f"has {size} bytes, but {len(data)} or more were read")
    return data


def read_text(path: Path, most: int, encoding: str = "utf-8") -> str:
    """Return the text of a file of at most `most` bytes. Raises Unreadable if it is none."""
    try:
        return read_bytes(path, most).decode(encoding)
    except UnicodeDecodeError as error:
        raise Unreadable(f"is no {encoding} text at byte {error.start}") from error


def read_json(path: Path, most: int = JSON_BYTES) -> Any:
    """Return the value in a JSON file of at most `most` bytes. Raises Unreadable if it is none."""
    return parse_json(read_bytes(path, most))


def check_values(parts: list[bytes]) -> None:
    """Raise Unreadable if the JSON of all parts together has too many values to hold them."""
    if sum(data.count(mark) for data in parts for mark in b"[{,:") > JSON_VALUES:
        raise Unreadable(f"has more than {JSON_VALUES} values")


def parse_json(data: bytes) -> Any:
    """Return the value of JSON text.

    Raises Unreadable if it is no JSON, has too many values to hold them, or is nested too deeply.
    """
    check_values([data])
    try:
        return json.loads(data.decode("utf-8"))
    except ValueError as error:
        raise Unreadable(f"is no JSON ({error})") from error
    except RecursionError as error:
        raise Unreadable("is nested too deeply") from error


def find_files(raw: Path, suffix: str) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Find what ends in `suffix` in a folder and the folders inside, links to folders left out.

    Returns the paths in rising order, and the folders that could not be listed, with the reason.
    """
    found: list[Path] = []
    closed: list[tuple[Path, str]] = []
    waiting = [os.fspath(raw)]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.endswith(suffix):
                        found.append(Path(entry.path))
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except (OSError, ValueError) as error:
            closed.append((Path(folder), reason_of(error)))
    return sorted(found), sorted(closed)


def is_folder(path: Path) -> bool:
    """Whether a path leads to a folder; also where it may not be looked at."""
    with suppress(OSError, ValueError):
        return path.is_dir()
    return False


def is_there(path: Path) -> bool:
    """Whether a name is taken, by whatever."""
    return os.path.lexists(path)


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder, in rising order. Raises Unreadable if it cannot be listed."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except (OSError, ValueError) as error:
        raise Unreadable(reason_of(error)) from error


def state_of(path: Path) -> tuple[int, int]:
    """Return size and time of change of what a path leads to; zeros where that is nothing."""
    with suppress(OSError, ValueError):
        state = path.stat()
        return state.st_size, state.st_mtime_ns
    return 0, 0
