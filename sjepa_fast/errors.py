# SPDX-License-Identifier: Apache-2.0
"""The exceptions that a command prints as one line: bad input, and a run that must stop."""

from __future__ import annotations

import difflib
import itertools

from sjepa_fast.names import printable

# Characters of the argument, of the value and of the fix: a value may be a whole file, and a fix
# may name all presets. Together they stay below 2,000.
_LONGEST = (160, 600, 1100)
_MOST_NAMED = 1000  # characters of known names


class InputError(ValueError):
    """Bad input that names the argument, the value found and the fix.

    The command lines print it as one line and exit with code 2; library callers catch it as a
    `ValueError`. The line can be printed as it is, whatever is in the value: control characters
    and escapes are shown, not sent.
    """

    def __init__(self, argument: str, value: object, fix: str) -> None:
        self.argument = argument
        self.value = value
        self.fix = fix
        parts = (str(part).replace("\n", " ") for part in (argument, value, fix))
        shown = [printable(part, most) for part, most in zip(parts, _LONGEST, strict=True)]
        super().__init__("{}: {}; {}".format(*shown))


class RunStopped(RuntimeError):
    """A run that must not go on, with the reason in one line; the command exits with code 1."""


def nearest(name: str, known: list[str]) -> str:
    """Return a phrase that names the closest known names, or as many of all as have room."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"nearest: {', '.join(close)}"
    ends = itertools.accumulate(len(text) + 2 for text in known)
    fits = sum(end <= _MOST_NAMED for end in ends)
    more = f" and {len(known) - fits} more" if fits < len(known) else ""
    return f"known: {', '.join(known[:fits])}{more}"
