# SPDX-License-Identifier: Apache-2.0
"""Opens small files of strangers: regular files of bounded size, JSON that is JSON.

A FIFO would wait for ever, a device never end, and a few megabytes of brackets become gigabytes of
objects. Whoever reads a configuration, a manifest, a list or a result opens it here.
"""

from __future__ import annotations

import io
import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sjepa_fast.errors import InputError

# What is read as JSON takes some twenty times its size in memory.
JSON_BYTES = 8 * 2**20
LIST_BYTES = 64 * 2**20


# Without waiting for the other end of a FIFO.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class Unreadable(ValueError):
    """A file that cannot be used; the message says why, without its name."""


def reason_of(error: Exception) -> str:
    """Return the words of an exception of a library, without a path where it has one."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def regular_handle(path: Path) -> int:
    """Open a regular file for reading, also behind links.

    Returns the descriptor. Raises Unreadable if there is none, it may not be read, or it is a
    folder, a FIFO, a socket or a device.
    """
    try:
        handle = os.open(path, _FLAGS)
        mode = os.fstat(handle).st_mode
    except (OSError, ValueError) as error:  # a zero byte in the name is a ValueError
        raise Unreadable(reason_of(error)) from error
    if stat.S_ISREG(mode):
        return handle
    os.close(handle)
    raise Unreadable("is a directory" if stat.S_ISDIR(mode) else "is no regular file")


def open_regular(argument: str, path: Path) -> io.FileIO:
    """Open a regular file as `regular_handle`. Raises InputError where that refuses it."""
    try:
        return io.FileIO(regular_handle(path))
    except Unreadable as error:
        raise InputError(argument, f"{path}: {error}", "name a file") from error


def read_regular(argument: str, path: Path, most: int) -> bytes:
    """Return the content of a regular file of at most `most` bytes.

    Raises InputError as `open_regular`, or if the file is larger.
    """
    with open_regular(argument, path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            # Read to one byte beyond: a file may grow, and some have no size.
            content = file.read(most + 1) if size <= most else b""
        except OSError as error:
            raise InputError(argument, f"{path}: {error.strerror}", "name a file") from error
    if len(content) > most or size > most:
        size = max(size, len(content))
        value = f"{path} has {size} bytes"
        raise InputError(argument, value, f"expected at most {most}; use the file that was meant")
    return content


def read_text(argument: str, path: Path, most: int = LIST_BYTES) -> str:
    """Return the text of a UTF-8 file. Raises InputError as `read_regular`, or if it is none."""
    content = read_regular(argument, path, most)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(argument, f"{path} is not UTF-8 ({error})", "mend the file") from error


def read_json(argument: str, path: Path, most: int = JSON_BYTES) -> dict[str, Any]:
    """Return the mapping in a JSON file.

    Raises InputError as `read_text`, or if it is no JSON, no mapping, has a key twice, is nested
    too deeply, or holds NaN, an infinity or a number with thousands of digits.
    """
    text = read_text(argument, path, most)
    try:
        value = json.loads(
            text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_once
        )
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(argument, f"{path} is not JSON ({reason})", "mend the file") from error
    if not isinstance(value, dict):
        raise InputError(argument, f"{path} is not a mapping", "use the file that was meant")
    return value


def check_fields(
    argument: str, path: Path, values: Mapping[str, Any], fields: Mapping[str, tuple[type, ...]]
) -> None:
    """Raise InputError unless the fields are there and have one of their types.

    A whole number is a `float` too; a truth value is neither that nor an `int`.
    """
    for name, kinds in fields.items():
        if name not in values:
            fix = "use a file of this version, undamaged"
            raise InputError(argument, f"{path} has no {name}", fix)
        kind = type(values[name])
        if kind not in kinds and not (kind is int and float in kinds):
            wanted = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
            value = f"{path} has {values[name]!r:.100} as {name}"
            raise InputError(argument, value, f"expected {wanted}")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text:.40} is too large")
    return number


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r:.100} twice")
        found[key] = value
    return found
