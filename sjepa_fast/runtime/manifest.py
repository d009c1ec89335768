# SPDX-License-Identifier: Apache-2.0
"""`checkpoint.json`: the bytes of a checkpoint, written down, so that changed ones are never used.

A file is opened once, compared with the manifest, and read through that same opening.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
from torch import Tensor

from sjepa_fast.errors import InputError
from sjepa_fast.opening import reason_of, regular_handle

MANIFEST, WEIGHTS, STATE = "checkpoint.json", "model.safetensors", "state.safetensors"
FORMAT = 1
# Of the manifest, and of the table of tensors at the head of a file: larger ones are not ours.
_MANIFEST_BYTES, _HEADER_BYTES = 2**16, 2**24
_FIX = "delete that folder, or restore it from a copy"
_OLDER = "copy it again if it is not whole; an older version's run goes on with that version alone"


class Entry(NamedTuple):
    """Size and SHA-256 of a file."""

    bytes: int
    sha256: str


class Manifest(NamedTuple):
    """What a checkpoint says of itself: after how many steps, and its files by name."""

    step: int
    files: dict[str, Entry]


def refusal(path: Path, reason: str, fix: str = _FIX) -> InputError:
    """Return the error for a checkpoint, or a file of it, that is not used."""
    return InputError("checkpoint", f"{path} {reason}", fix)


def write_manifest(folder: Path, step: int) -> None:
    """Describe all files of a checkpoint folder in `checkpoint.json`, its last file."""
    files = {path.name: entry_of(path)._asdict() for path in sorted(folder.iterdir())}
    text = _render({"format": FORMAT, "step": step, "files": files})
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def entry_of(path: Path) -> Entry:
    """Return size and SHA-256 of a file."""
    with path.open("rb") as file:
        return Entry(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def as_entry(value: Any) -> Entry | None:
    """Return the entry that a mapping from a file describes; None if it is none."""
    if not isinstance(value, dict) or value.keys() != {"bytes", "sha256"}:
        return None
    if type(value["bytes"]) is not int or type(value["sha256"]) is not str:
        return None
    return Entry(**value)


def _render(content: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, indent=2) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Read `checkpoint.json`, in which no byte may have changed.

    Raises InputError if it is missing, which it is for older versions' checkpoints; damaged; of a
    newer format; or of another step than the folder's name says.
    """
    path = folder / MANIFEST
    try:
        with os.fdopen(regular_handle(path), "rb") as file:
            text = file.read(_MANIFEST_BYTES).decode()
    except (OSError, ValueError) as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise refusal(folder, f"has no {MANIFEST}", _OLDER) from error
        raise refusal(path, f"cannot be read ({reason_of(error)})") from error
    try:
        content = json.loads(text)
        own = {key: content[key] for key in ("format", "step", "files")}
        whole = _render(own) == text
    except (ValueError, TypeError, KeyError, RecursionError):
        whole = False
    if not whole:
        raise refusal(path, "is damaged")
    if own["format"] != FORMAT:
        raise refusal(folder, f"has the format {own['format']}", f"this version reads {FORMAT}")
    manifest = _structure(own)
    if manifest is None:
        raise refusal(path, "describes no checkpoint")
    if folder.name != folder_name(manifest.step):
        raise refusal(folder, f"holds step {manifest.step}", "give it its own name again")
    return manifest


def folder_name(step: int) -> str:
    """Return the name of the folder of a step's checkpoint."""
    return f"step-{step:08d}"


def _structure(content: dict[str, Any]) -> Manifest | None:
    step, files = content["step"], content["files"]
    if type(step) is not int or not 0 <= step < 10**8 or not isinstance(files, dict):
        return None
    if not {WEIGHTS} <= files.keys() <= {WEIGHTS, STATE}:
        return None
    entries = {}
    for name, value in files.items():
        entry = as_entry(value)
        if entry is None:
            return None
        entries[name] = entry
    return Manifest(step, entries)


def read_tensors(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a checkpoint's file, and its notes, if every byte is as it was written.

    Raises InputError as `read_checked`, or if the file is missing or belongs to another step.
    """
    manifest, path = read_manifest(folder), folder / name
    entry = manifest.files.get(name)
    if entry is None:
        raise refusal(folder, f"holds no {name}", "use a checkpoint that training wrote")
    tensors, notes = read_checked(path, entry)
    if notes.get("step") != str(manifest.step):
        raise refusal(path, f"is of step {notes.get('step')!r}, not {manifest.step}")
    return tensors, notes


def read_checked(path: Path, entry: Entry) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the notes of a safetensors file that has the bytes of its entry.

    The tensors are on the CPU and lie in the mapped file: they cost no memory until they are read.
    Time grows with the size of the file. Raises InputError if the file cannot be read or differs.
    """
    try:
        with os.fdopen(regular_handle(path), "rb") as file:
            if os.fstat(file.fileno()).st_size != entry.bytes:
                raise refusal(path, f"has not the {entry.bytes} bytes that were written")
            if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                raise refusal(path, "has other content than was written")
            file.seek(0)
            if int.from_bytes(file.read(8), "little") > _HEADER_BYTES:
                raise refusal(path, "has a table of tensors that is too long")
            # What was compared is what is read, and a name that is not UTF-8 would be refused.
            with safetensors.safe_open(f"/dev/fd/{file.fileno()}", "pt") as opened:
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
                return tensors, dict(opened.metadata() or {})
    except InputError:
        raise
    except OSError as error:
        raise refusal(path, f"cannot be read ({error.strerror or error})") from error
    except (safetensors.SafetensorError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise refusal(path, f"cannot be read ({error})") from error
