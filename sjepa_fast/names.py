# SPDX-License-Identifier: Apache-2.0
"""Names that strangers chose (of stores, clips, classes, files): as file names, and as text.

Nothing else makes a file name of a name, and nothing but `say` and a display
(`runtime/progress.py`) prints. Errors are printable by themselves (`InputError`).
"""

from __future__ import annotations

import hashlib
import os
import sys

# Beside letters and digits of all scripts. No separator, no wildcard, nothing that a shell reads.
_KEPT = " ._+-=,()@"
_LONGEST = 120  # bytes; a file name may have 255, and gets endings and a temporary name's letters


def file_name(name: str) -> str:
    """Return a name as one part of a path, which cannot leave its folder.

    Letters, digits, spaces and `._+-=,()@` stay; an ordinary name is its own file name. Where
    anything had to be changed, a digest of the name follows, so different names stay different.
    """
    kept = "".join(char if char.isalnum() or char in _KEPT else "_" for char in name)
    # No hidden file, no `..`, and no blank that cannot be seen.
    kept = kept.lstrip(". ").rstrip(" ")
    cut = kept.encode()[:_LONGEST].decode(errors="ignore")
    if cut == name and cut:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{cut or '_'}-{digest[:8]}"


def printable(text: object, longest: int | None = None) -> str:
    r"""Return text with everything escaped that a terminal would obey or not show.

    Control characters, escapes, marks that turn the direction of writing, line separators,
    invisible characters and lone surrogates become `\x1b`, `\u202e`, `\U000e0001`. What is longer
    than `longest` characters is cut, and says so.
    """
    shown = str(text)
    kept = shown[:longest]
    escaped = "".join(char if char.isprintable() else _escape(ord(char)) for char in kept)
    if len(kept) == len(shown) and len(escaped[:longest]) == len(escaped):
        return escaped
    return f"{escaped[:longest]}... ({len(shown)} characters)"


def say(text: object = "", *, to_stderr: bool = False) -> None:
    """Print lines, with everything escaped that a terminal would obey but the ends of lines."""
    for line in str(text).split("\n"):
        print(printable(line), file=sys.stderr if to_stderr else sys.stdout, flush=True)


def hush() -> None:
    """Send what is printed from here on nowhere: who read it has closed the pipe.

    Python must not report that again at its exit.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _escape(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
