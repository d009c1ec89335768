"""The exception type for input that a user can correct."""

from __future__ import annotations

import difflib


class InputError(ValueError):
    """Bad input that names the argument, the value found and the fix.

    The command lines print it as one line and exit with code 2; library callers catch it as a
    `ValueError`.
    """

    def __init__(self, argument: str, value: object, fix: str) -> None:
        self.argument = argument
        self.value = value
        self.fix = fix
        super().__init__(f"{argument}: {value}; {fix}".replace("\n", " "))


def nearest(name: str, known: list[str]) -> str:
    """Return a phrase that names the closest known names, or all of them."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"nearest: {', '.join(close)}" if close else f"known: {', '.join(known)}"
