# SPDX-License-Identifier: Apache-2.0
"""Atomic writes of small files and of whole folders."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

# The endings of new files and folders, and of a folder that is being deleted.
_TEMPORARY = re.compile(r"\.([a-z0-9_]{8}|dropped)")


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Flush a folder and all files in it to the disk."""
    for part in path.rglob("*"):
        if part.is_file():
            sync(part)
    sync(path)


def new_beside(path: Path, make: Callable[[Path], object]) -> Path:
    """Make a hidden sibling of a file or folder, readable for whom the umask lets read."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with contextlib.suppress(FileExistsError):
            make(temporary)
            return temporary


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a hidden sibling file that becomes `path` when the block ends without an error."""
    temporary = new_beside(path, lambda new: new.touch(exist_ok=False))
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            # A full disk does not say which file it was.
            error.filename = str(path)
        raise


def remove_leftovers(folder: Path, *names: str) -> None:
    """Delete what killed processes left of files or folders of these names (with wildcards).

    Nobody else may be writing them.
    """
    for name in names:
        for path in folder.glob(f".{name}.*"):
            if _TEMPORARY.fullmatch(path.suffix):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file so that readers see the old or the new content, never a part."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, atomically; a list of plain values is one line."""
    write_text(path, _indented(value, "\n") + "\n")


def _indented(value: object, line: str) -> str:
    more = line + "  "
    if isinstance(value, dict) and value:
        parts = [f"{json.dumps(str(key))}: {_indented(v, more)}" for key, v in value.items()]
        return f"{{{more}{f',{more}'.join(parts)}{line}}}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        parts = [_indented(item, more) for item in value]
        return f"[{more}{f',{more}'.join(parts)}{line}]"
    return json.dumps(value)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a hidden sibling folder that becomes `path` when the block ends without an error.

    An existing folder of that name is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = new_beside(path, Path.mkdir)
    try:
        yield temporary
        sync_folder(temporary)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
        sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
