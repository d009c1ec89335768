# SPDX-License-Identifier: Apache-2.0
"""Fills a store from a source of records, shows how far it is, and says what has become of them."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from sjepa_fast._version import __version__
from sjepa_fast.data.clip_table import NO_LABEL, ClipTable
from sjepa_fast.data.readers.drawn_split import Draw
from sjepa_fast.data.readers.published import split_sizes
from sjepa_fast.data.readers.record import Source, Splits
from sjepa_fast.data.store import Store
from sjepa_fast.data.store_writer import StoreWriter
from sjepa_fast.errors import InputError
from sjepa_fast.names import say
from sjepa_fast.runtime.files import write_text
from sjepa_fast.runtime.progress import Display

# How many skipped inputs are printed; the written list has all.
SHOWN = 20


class Request(Protocol):
    """A dataclass of options, of which these say where to write and how."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def out(self) -> Path | None:
        """Store to make."""

    @property
    def dtype(self) -> str:
        """Stored precision."""

    @property
    def overwrite(self) -> bool:
        """Replace an existing store."""

    @property
    def dry_run(self) -> bool:
        """Write nothing."""


def copy_records(
    sink: StoreWriter | ClipTable, source: Source, display: Display, done: int = 0
) -> None:
    """Copy all records but the first `done`, and show how far that is.

    A clip that the sink refuses (a name that occurs twice, a label out of range, a number too large
    for the stored precision) is skipped with the reason, like an unreadable file.
    """
    display.count(source.name, source.count, done)
    # What overflows becomes infinite, and is refused by name.
    with np.errstate(over="ignore", invalid="ignore"):
        for record in display.each(source.records(done)):
            if record.clip_MTVC is None:
                sink.skip(record.name, record.reason)
                continue
            try:
                sink.add(record.name, record.clip_MTVC, record.label, record.meta)
            except InputError as error:
                sink.skip(record.name, str(error))


def write_store(
    source: Source, request: Request, out: Path, command: str, draw: Draw, display: Display
) -> tuple[Store, ClipTable, str]:
    """Copy all records into a store.

    Returns the finished store, the table of its clips and skipped inputs, and by which flags a
    split was drawn. A KeyboardInterrupt says what is kept.
    """
    settings = {**dataclasses.asdict(request), "out": "", "overwrite": False}
    job = json.dumps([__version__, source.identity, settings], default=str, sort_keys=True)
    writer = StoreWriter(
        out,
        source.name,
        source.layout,
        source.class_names,
        dtype=request.dtype,
        overwrite=request.overwrite,
        job=job,
    )
    table = writer.table
    try:
        with writer:
            if writer.done:
                say(f"{source.name}: resuming after {writer.done} of {source.count}")
            copy_records(writer, source, display, writer.done)
            display.phase("writing")
            splits, drawn = draw.splits_of(table, source)
            command = f"{command} {drawn}".rstrip()
            store = writer.finish(splits, command, fps=source.fps, sets=source.sets)
    except KeyboardInterrupt:
        kept = len(table.names) + len(table.skipped)
        raise KeyboardInterrupt(f"{kept} of {source.count} inputs are kept") from None
    return store, table, drawn


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


def check_out(request: Request) -> None:
    """Raise InputError if no store is named and it is no dry run."""
    if request.out is None and not request.dry_run:
        raise InputError("--out", "missing", "name the store to make, or --dry-run")


def fill(
    source: Source, request: Request, command: str, draw: Draw, display: Display
) -> tuple[ClipTable, Splits, str]:
    """Write the store that `request` asks for, or count for a dry run; print a summary.

    `command` is noted in the store. Returns the table of clips, their splits, and by which flags
    one was drawn. Raises InputError if no store is named, it cannot be written, or a split cannot
    be drawn.
    """
    check_out(request)
    began = time.perf_counter()
    if request.out is None or request.dry_run:
        table = ClipTable(source.layout, source.class_names, request.dtype)
        copy_records(table, source, display)
        (splits, drawn), where = draw.splits_of(table, source), "(dry run, nothing written)"
        size = table.joint_bytes()
    else:
        store, table, drawn = write_store(source, request, request.out, command, draw, display)
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
    return table, splits, drawn
