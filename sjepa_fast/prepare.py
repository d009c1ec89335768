"""`python -m sjepa_fast.prepare NAME --raw PATH --out STORE`: makes a store from raw files."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from rich.progress import Progress

from sjepa_fast import cli
from sjepa_fast._version import __version__
from sjepa_fast.data.clip_table import NO_LABEL, ClipTable
from sjepa_fast.data.readers import READERS, options_of
from sjepa_fast.data.readers.drawn_split import RANDOM, check_way, default_way, draw_split
from sjepa_fast.data.readers.own_clip import Up
from sjepa_fast.data.readers.published import compare, split_sizes
from sjepa_fast.data.readers.record import Record, Source, Splits
from sjepa_fast.data.store import Store
from sjepa_fast.data.store_writer import StoreWriter
from sjepa_fast.data.units import Units
from sjepa_fast.errors import InputError, nearest
from sjepa_fast.names import say
from sjepa_fast.runtime.files import write_text

PLAIN_SECONDS = 10.0
# How many skipped inputs are printed; the written list has all.
SHOWN = 20


_NAMES = f"What the raw data are, see docs/data.md: {', '.join(READERS)}."


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
    test_share: float = 0.2
    """Share of the clips, or of the column's values, that a drawn split tests; 0: none."""
    seed: int = 0
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


def _plain_progress(records: Iterable[Record], source: Source, done: int) -> Iterator[Record]:
    # A log file gets one line every `PLAIN_SECONDS` instead of a bar.
    printed = time.monotonic()
    for count, record in enumerate(records, done + 1):
        if time.monotonic() - printed >= PLAIN_SECONDS:
            printed = time.monotonic()
            say(f"{source.name}: {count} of {source.count}", to_stderr=True)
        yield record


def copy_records(sink: StoreWriter | ClipTable, source: Source, done: int = 0) -> None:
    """Copy all records but the first `done`, with a bar on a terminal and lines elsewhere.

    A clip that the sink refuses (a name that occurs twice, a label out of range, a number too large
    for the stored precision) is skipped with the reason, like an unreadable file.
    """
    on_terminal = sys.stdout.isatty()
    with (
        Progress(disable=not on_terminal, transient=True) as progress,
        # What overflows becomes infinite, and is refused by name.
        np.errstate(over="ignore", invalid="ignore"),
    ):
        records: Iterable[Record] = source.records(done)
        if on_terminal:
            records = progress.track(
                records, total=source.count, completed=done, description=source.name
            )
        else:
            records = _plain_progress(records, source, done)
        for record in records:
            if record.clip_MTVC is None:
                sink.skip(record.name, record.reason)
                continue
            try:
                sink.add(record.name, record.clip_MTVC, record.label, record.meta)
            except InputError as error:
                sink.skip(record.name, str(error))


def check_split(request: PrepareConfig, source: Source) -> None:
    """Raise InputError if no split can be drawn so; reads up to the first clip, if it must."""
    if not 0 <= request.test_share < 1:
        raise InputError("test_share", request.test_share, "give a share from 0 to below 1")
    if request.seed < 0:
        raise InputError("seed", request.seed, "give 0 or more")
    if request.split_by not in ("", RANDOM):
        clips = (record for record in source.records() if record.clip_MTVC is not None)
        check_way(request.split_by, sorted(next((clip.meta for clip in clips), {})))


def splits_of(table: ClipTable, source: Source, request: PrepareConfig) -> tuple[Splits, str]:
    """Make the splits of the clips that were kept, with one that is drawn if it is wanted.

    Returns them, and by which flags one was drawn, empty if none was. Raises InputError if none can
    be drawn as it is wanted.
    """
    if not table.names:
        return {}, ""
    splits = source.splits(list(table.names), table.columns())
    if splits and not request.split_by:
        return splits, ""
    by = request.split_by or default_way(table)
    if by in splits:
        fix = "leave --split-by away, or draw it by another column"
        raise InputError("split_by", f"the raw data have a split {by}", fix)
    drawn = draw_split(table, by, request.test_share, request.seed)
    flags = f"--split-by {by} --test-share {request.test_share:g} --seed {request.seed}"
    return {**splits, by: drawn}, flags


def write_store(source: Source, request: PrepareConfig, out: Path) -> tuple[Store, ClipTable, str]:
    """Copy all records into a store.

    Returns the finished store, the table of its clips and skipped inputs, and by which flags a
    split was drawn.
    """
    command = " ".join(["prepare", request.name, "--dtype", request.dtype])
    for flag, value in (("--units", request.units), ("--up", request.up)):
        command += f" {flag} {value}" if value != "auto" else ""
    settings = {**dataclasses.asdict(request), "out": "", "overwrite": False}
    job = json.dumps([__version__, source.identity, settings], default=str, sort_keys=True)
    with StoreWriter(
        out,
        source.name,
        source.layout,
        source.class_names,
        dtype=request.dtype,
        overwrite=request.overwrite,
        job=job,
    ) as writer:
        if writer.done:
            say(f"{source.name}: resuming after {writer.done} of {source.count}")
        copy_records(writer, source, writer.done)
        splits, drawn = splits_of(writer.table, source, request)
        return writer.finish(splits, f"{command} {drawn}".rstrip()), writer.table, drawn


def _report_skipped(table: ClipTable, out: Path | None) -> None:
    beside = out.with_name(f"{out.name}.skipped.txt") if out else None
    shown = table.skipped[:SHOWN]
    for name, reason in shown:
        say(f"skipped {name}: {reason}")
    if len(table.skipped) > len(shown):
        where = f", all in {beside}" if beside else ""
        say(f"... and {len(table.skipped) - len(shown)} more{where}")
    if beside and table.skipped:
        write_text(beside, "".join(f"{name}\t{reason}\n" for name, reason in table.skipped))
    elif beside:
        beside.unlink(missing_ok=True)


def _classes(table: ClipTable) -> str:
    without = table.labels.count(NO_LABEL)
    return f"{len(table.class_names)} classes" + (f", {without} without a label" if without else "")


def prepare(request: PrepareConfig) -> int:
    """Prepare one data set, print a summary, and return 0.

    Raises InputError if the name is unknown or the raw data is unusable.
    """
    if request.name not in READERS:
        raise InputError("name", request.name, nearest(request.name, list(READERS)))
    if request.out is None and not request.dry_run:
        raise InputError("--out", "missing", "name the store to make, or --dry-run")
    began = time.perf_counter()
    source = open_source(request)
    check_split(request, source)
    if source.note:
        say(f"note: {source.note}")
    if request.out is None or request.dry_run:
        table = ClipTable(source.layout, source.class_names, request.dtype)
        copy_records(table, source)
        (splits, drawn), where = splits_of(table, source, request), "dry run, nothing written"
        size = table.joint_bytes()
    else:
        store, table, drawn = write_store(source, request, request.out)
        splits, where = store.splits, f"-> {store.root}"
        size = sum(file.stat().st_size for file in store.root.iterdir())
    _report_skipped(table, None if request.dry_run else request.out)
    parts = ", ".join(f"{key} {a}/{b}" for key, (a, b) in split_sizes(splits).items())
    say(
        f"{source.name}: {len(table.names)} clips, {sum(table.frames)} frames, "
        f"{_classes(table)}, up to {max(table.bodies, default=0)} bodies, "
        f"{len(table.skipped)} skipped; train/test: {parts}; {size / 2**20:.1f} MiB in "
        f"{time.perf_counter() - began:.1f} s {where}"
    )
    if drawn and not request.split_by:
        say(f"note: the raw data have no split; one was drawn: {drawn}")
    if not drawn and (request.test_share, request.seed) != (0.2, 0):
        say("note: no split was drawn, the raw data have one; add --split-by to draw another")
    comparison = compare(source.name, source.count, len(table.names), splits)
    if comparison:
        say(comparison)
    return 0


def main(argv: list[str] | None = None) -> None:
    """Console entry: exit with 0, 1, 2 (usage) or 130 (interrupted, nothing left behind)."""
    cli.run_main(lambda: prepare(cli.parse(PrepareConfig, argv, prog="sjepa_fast.prepare")))


if __name__ == "__main__":
    main()
