"""A command on a terminal of 100 columns: a pseudo-terminal, and what was drawn on it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.cells import cell_len

from tests.tiny import environment

COLUMNS = 100
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")


@dataclass(frozen=True)
class Shown:
    """What a command wrote to its terminal, and its exit code."""

    code: int
    raw: str

    @property
    def text(self) -> str:
        """What was written, without the escapes."""
        return _ESCAPES.sub("", self.raw)

    @property
    def lines(self) -> list[str]:
        """Every line that was drawn, also those drawn over."""
        parts = re.split(r"[\r\n]+", self.text)
        return [part.rstrip() for part in parts if part.strip()]

    @property
    def bars(self) -> list[str]:
        """The lines with a bar, of which none may be broken by the terminal."""
        found = [line for line in self.lines if "━" in line or "╸" in line]
        assert all(cell_len(line) <= COLUMNS for line in found), max(found, key=cell_len)
        return found


def on_terminal(
    *words: str | Path, react: Callable[[str], bytes] = lambda _: b"", timeout: float = 300
) -> Shown:
    """Run `python WORDS` on a terminal; what `react` makes of the output so far is typed there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    kept = {k: v for k, v in environment().items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        # A session of its own, whose terminal this is: a typed Ctrl-C is a signal.
        [sys.executable, "-c", _BEGIN, *map(str, words)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**kept, "TERM": "xterm-256color"},
        start_new_session=True,
    )
    os.close(theirs)
    found, limit = b"", time.monotonic() + timeout
    try:
        while time.monotonic() < limit:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the last process has closed it
                break
            if not part:
                break
            found += part
            typed = react(found.decode(errors="replace"))
            if typed:
                os.write(ours, typed)
    finally:
        os.close(ours)
        process.wait(30)
    return Shown(process.returncode, found.decode(errors="replace"))


# The children of a background job ignore SIGINT.
_BEGIN = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
