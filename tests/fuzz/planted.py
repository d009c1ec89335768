"""One target for each kind of outcome, so that the harness itself can be tested."""

from __future__ import annotations

import ctypes
import os
import random
import time
from pathlib import Path

import numpy as np

from sjepa_fast.errors import InputError
from tests.fuzz.target import Crashed, Target, Unavailable


def _path(rng: random.Random, folder: Path) -> Path:
    path = folder / "input"
    path.write_bytes(rng.randbytes(4))
    return path


def _refuse(path: Path) -> None:
    raise InputError("file", path.read_bytes().hex(), "none")


def _raise(path: Path) -> None:
    raise KeyError(path.name)


def _crash(path: Path) -> None:
    ctypes.string_at(0)


def _hang(path: Path) -> None:
    time.sleep(60)


def _allocate(path: Path) -> None:
    # The reader that hides it counts too.
    try:
        np.ones(2**30, dtype=np.uint8)
    except MemoryError as error:
        raise InputError("file", "too large", "none") from error


def _execute(path: Path) -> None:
    os.system("true")


def _swallow(path: Path) -> None:
    try:
        os.system("true")
    except BaseException:
        return


def _escape(path: Path) -> None:
    (path.parent / ".." / "outside").write_text("out")


def _control(path: Path) -> None:
    print("\x1b[2J")


def _watched(path: Path) -> None:
    raise Crashed("AddressSanitizer: heap-buffer-overflow")


def _not_here(folder: Path) -> None:
    raise Unavailable("no compiler")


TARGETS = (
    Target("accepted", _path, lambda path: None),
    Target("skipped", _path, lambda path: "skipped: empty"),
    Target("refused", _path, _refuse),
    Target("TRACEBACK", _path, _raise),
    Target("CRASH", _path, _crash),
    Target("CRASH of a process", _path, _watched),
    Target("HANG", _path, _hang),
    Target("MEMORY", _path, _allocate),
    Target("EXECUTED", _path, _execute),
    Target("EXECUTED and hidden", _path, _swallow),
    Target("EXECUTED by writing", _path, _escape),
    Target("RAW", _path, _control),
    Target("unavailable", _path, lambda path: None, _not_here),
)
