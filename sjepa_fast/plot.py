"""`python -m sjepa_fast.plot KIND RUN [--out FILE]`: a picture of a run or of its clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sjepa_fast import cli
from sjepa_fast.errors import InputError, nearest
from sjepa_fast.names import say
from sjepa_fast.pictures import KINDS
from sjepa_fast.runtime.files import new_file
from sjepa_fast.viz.figure import MOVING, STILL, write_figure

PROG = "sjepa_fast.plot"


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


def _help() -> None:
    command = cli.command(PROG)
    say(f"usage: {command} KIND RUN [--out FILE] [--flag value ...]\n\nKinds:")
    for name, kind in KINDS.items():
        say(f"  {name:<12}{(kind.request.__doc__ or '').splitlines()[0]}")
    say(f"\nThe flags of one: {command} KIND --help")


def run(arguments: list[str]) -> int:
    """Draw the kind named first, with the other arguments as its run folder and flags."""
    if not arguments or arguments[0] in ("-h", "--help"):
        _help()
        return 0
    name = arguments[0]
    if name not in KINDS:
        raise InputError("kind", name, nearest(name, list(KINDS)))
    request = cli.parse(KINDS[name].request, arguments[1:], prog=f"{PROG} {name}")
    return plot(request, name)


def main(argv: list[str] | None = None) -> None:
    """Console entry: exit with 0, 1, 2 (usage) or 130 (interrupted, no file written)."""
    cli.run_main(lambda: run(cli.arguments(argv)))


if __name__ == "__main__":
    main()
