# SPDX-License-Identifier: Apache-2.0
"""Draw one of the kinds of pictures and write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sjepa_fast.errors import InputError
from sjepa_fast.names import say
from sjepa_fast.pictures import KINDS
from sjepa_fast.runtime.files import new_file
from sjepa_fast.viz.figure import MOVING, STILL, write_figure


def _out(request: Any, name: str) -> Path:
    """Return the file to write, with an ending that the kind can have."""
    if request.out is None:
        runs = [request.run] if hasattr(request, "run") else list(request.runs)
        if len(runs) > 1:
            raise InputError("out", "not given", "name a file for the picture of several runs")
        return Path(*runs) / f"{name}.png"
    out: Path = request.out
    endings = STILL + MOVING if KINDS[name].moves else STILL
    if out.suffix not in endings:
        still = "" if KINDS[name].moves else f", and {name} does not move"
        *most, last = endings
        fix = f"end it with {', '.join(most)} or {last}"
        raise InputError("out", f"{out} ends with {out.suffix or 'nothing'}{still}", fix)
    return out


def plot(request: Any, name: str) -> int:
    """Draw one of `KINDS` and write it in the format of the file's ending; return 0.

    The request is the kind's own dataclass. Raises InputError if run, store or clip do not fit, or
    the file cannot be written; then none is.
    """
    out = _out(request, name)
    picture = KINDS[name].draw(request, out.suffix in MOVING)
    try:
        with new_file(out) as path:
            write_figure(picture, path, out.suffix)
    except OSError as error:
        value = f"{out} cannot be written ({error.strerror or error})"
        raise InputError("out", value, "name a file in a folder that can be written") from error
    say(f"{name} -> {out}")
    return 0
