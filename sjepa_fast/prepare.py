# SPDX-License-Identifier: Apache-2.0
"""`python -m sjepa_fast.prepare NAME --raw PATH --out STORE`: makes a store from raw files.

`python -m sjepa_fast.prepare merge STORE... --layout NAME --out POOL` makes one of several.
"""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sjepa_fast import cli
from sjepa_fast.data.fill import check_out, fill
from sjepa_fast.data.readers import READERS, options_of
from sjepa_fast.data.readers.drawn_split import Draw
from sjepa_fast.data.readers.own_clip import Up
from sjepa_fast.data.readers.published import compare
from sjepa_fast.data.readers.record import Source
from sjepa_fast.data.units import Units
from sjepa_fast.errors import InputError, nearest
from sjepa_fast.merge import MERGE, MergeConfig, merge
from sjepa_fast.names import say
from sjepa_fast.runtime.progress import Display

PROG = "sjepa_fast.prepare"
_NAMES = f"What the raw data are, see docs/data.md: {', '.join(READERS)}; or {MERGE}."


@dataclass(frozen=True)
class PrepareConfig:
    """Turn raw skeleton files into a store."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(help=_NAMES)]
    raw: Path
    """Folder or file of the raw data."""
    out: Path | None = None
    """Store to make."""
    missing: Path | None = None
    """ntu60, ntu120: list of samples to leave out, as published with the data."""
    split_name: str = "xsub"
    """ctrgcn: what to call the file's split."""
    dtype: Literal["float32", "float16"] = "float32"
    """Stored precision."""
    overwrite: bool = False
    """Replace an existing store."""
    dry_run: bool = False
    """Read everything and report, but write nothing."""
    layout: str = ""
    """generic: name of the joint layout; empty for the folder's layout.json."""
    units: Units = "auto"
    """generic: what clips in space are in; auto tells by the size of the bodies."""
    up: Up = "auto"
    """generic: axis that is up in arrays, BVH and C3D files; auto: y, and what a C3D file says."""
    split_by: str = ""
    """Draw a split of this name: random, or a column such as subject, each of whose values is then
    in one part only. By default where the raw data have no split, by subject if there are some."""
    test_share: float = Draw.test_share
    """Share of the clips, or of the column's values, that a drawn split tests; 0: none."""
    seed: int = Draw.seed
    """Names the draw of a split."""


def open_source(request: PrepareConfig) -> Source:
    """Open the raw data with the reader that `request.name` names.

    Raises InputError if an option belongs to another reader, or the raw data is unusable.
    """
    own = options_of(request.name)
    for field in dataclasses.fields(request):
        value = getattr(request, field.name)
        owners = [name for name in READERS if field.name in options_of(name)]
        if owners and request.name not in owners and value != field.default:
            fix = f"it applies to {' and '.join(owners)} only"
            raise InputError(field.name, f"{value} with {request.name}", fix)
    return READERS[request.name](request.raw, **{key: getattr(request, key) for key in own})


def prepare(request: PrepareConfig) -> int:
    """Prepare one data set, print a summary, and return 0.

    Raises InputError if the name is unknown or the raw data is unusable.
    """
    if request.name not in READERS:
        raise InputError("name", request.name, nearest(request.name, [*READERS, MERGE]))
    check_out(request)
    with Display() as display:
        display.phase("loading")
        return _prepare(request, display)


def _prepare(request: PrepareConfig, display: Display) -> int:
    source = open_source(request)
    draw = Draw(request.split_by, request.test_share, request.seed)
    draw.check(source)
    if source.note:
        display.note(f"note: {source.note}")
    command = " ".join(["prepare", request.name, "--dtype", request.dtype])
    for flag, value in (("--units", request.units), ("--up", request.up)):
        command += f" {flag} {value}" if value != "auto" else ""
    table, splits, drawn = fill(source, request, command, draw, display)
    if drawn and not request.split_by:
        say(f"note: the raw data have no split; one was drawn: {drawn}")
    if not drawn and (draw.test_share, draw.seed) != (Draw.test_share, Draw.seed):
        say("note: no split was drawn, the raw data have one; add --split-by to draw another")
    comparison = compare(source.name, source.count, len(table.names), splits)
    if comparison:
        say(comparison)
    return 0


def run(arguments: list[str]) -> int:
    """Read raw data by the reader that is named first, or merge stores."""
    try:
        if arguments[:1] == [MERGE]:
            return merge(cli.parse(MergeConfig, arguments[1:], prog=f"{PROG} {MERGE}"))
        return prepare(cli.parse(PrepareConfig, arguments, prog=PROG))
    except KeyboardInterrupt as interrupt:
        said = "interrupted; nothing is kept"
        if str(interrupt):
            said = f"{interrupt}; {cli.command(PROG)} {shlex.join(arguments)} goes on"
        raise KeyboardInterrupt(said) from None


def main(argv: list[str] | None = None) -> None:
    """Console entry: exit with 0, 1, 2 (usage) or 130 (interrupted, says what is kept)."""
    cli.run_main(lambda: run(cli.arguments(argv)))


if __name__ == "__main__":
    main()
