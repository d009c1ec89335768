"""`python -m sjepa_fast.prepare NAME --raw PATH --out STORE`: raw skeleton files to a store."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from rich.progress import Progress

from sjepa_fast import cli
from sjepa_fast.config import nearest
from sjepa_fast.data.readers import ctrgcn_npz, ntu, pyskl, ragged_npz
from sjepa_fast.data.readers.record import Record, Source
from sjepa_fast.data.store import Store, StoreWriter
from sjepa_fast.errors import InputError

NAMES = (*ntu.CLASSES, *ragged_npz.SETS, "ctrgcn", "pyskl")
PLAIN_SECONDS = 10.0


@dataclass(frozen=True)
class PrepareConfig:
    """Turn raw skeleton files into a store."""

    name: Annotated[str, tyro.conf.Positional]
    """ntu60, ntu120 (raw .skeleton files), nucla, msr_action3d, sbu, utkinect, florence3d (ragged
    .npz), ctrgcn (CTR-GCN or MAMP .npz) or pyskl (.pkl)."""
    raw: Path
    """Folder or file of the raw data."""
    out: Path
    """Store to make."""
    missing: Path | None = None
    """ntu60, ntu120: list of samples to leave out, as published with the data."""
    split_name: str = "xsub"
    """ctrgcn: what to call the file's split."""
    dtype: Literal["float32", "float16"] = "float32"
    """Stored precision."""
    overwrite: bool = False
    """Replace an existing store."""


def open_source(request: PrepareConfig) -> Source:
    """Open the raw data with the reader of its name."""
    if request.missing is not None and request.name not in ntu.CLASSES:
        fix = f"it applies to {' and '.join(ntu.CLASSES)} only"
        raise InputError("missing", f"{request.missing} with {request.name}", fix)
    if request.name in ntu.CLASSES:
        return ntu.open_ntu(request.name, request.raw, request.missing)
    if request.name == "ctrgcn":
        return ctrgcn_npz.open_ctrgcn(request.raw, request.split_name)
    if request.name == "pyskl":
        return pyskl.open_pyskl(request.raw)
    return ragged_npz.open_ragged(request.name, request.raw)


def _plain_progress(source: Source) -> Iterator[Record]:
    # A log file gets a line now and then instead of a bar.
    said = time.monotonic()
    for done, record in enumerate(source.records(), 1):
        if time.monotonic() - said >= PLAIN_SECONDS:
            said = time.monotonic()
            print(f"{source.name}: {done} of {source.count}", file=sys.stderr, flush=True)
        yield record


def write_store(source: Source, request: PrepareConfig) -> Store:
    """Copy all records into a store, with a progress bar on a terminal and plain lines elsewhere.

    Args:
        source: The opened raw data.
        request: Where to, and how.

    Returns:
        The finished store.
    """
    on_terminal = sys.stdout.isatty()
    command = " ".join(["prepare", request.name, "--dtype", request.dtype])
    with (
        StoreWriter(
            request.out,
            source.name,
            source.layout,
            source.class_names,
            dtype=request.dtype,
            overwrite=request.overwrite,
        ) as writer,
        Progress(disable=not on_terminal, transient=True) as progress,
    ):
        records = (
            progress.track(source.records(), total=source.count, description=source.name)
            if on_terminal
            else _plain_progress(source)
        )
        for record in records:
            if record.clip_MTVC is None:
                writer.skip(record.name, record.reason)
            else:
                writer.add(record.name, record.clip_MTVC, record.label, record.meta)
        columns = {k: np.array(v, dtype=np.int64) for k, v in writer.meta.items()}
        splits = source.splits(list(writer.names), columns) if writer.names else {}
        return writer.finish(splits, command)


def prepare(request: PrepareConfig) -> int:
    """Prepare one data set and print what came of it.

    Args:
        request: The parsed command line.

    Returns:
        0.

    Raises:
        InputError: If the name is unknown or the raw data is unusable.
    """
    if request.name not in NAMES:
        raise InputError("name", request.name, nearest(request.name, list(NAMES)))
    began = time.perf_counter()
    store = write_store(open_source(request), request)
    for name, reason in store.skipped:
        print(f"skipped {name}: {reason}")
    parts = ", ".join(
        f"{split} {int((codes == 1).sum())}/{int((codes == 2).sum())}"
        for split, codes in store.splits.items()
    )
    size = sum(file.stat().st_size for file in store.root.iterdir()) / 2**20
    print(
        f"{store.name}: {len(store)} clips, {int(store.frames.sum())} frames, "
        f"{len(store.class_names)} classes, up to {store.max_bodies} bodies, "
        f"{len(store.skipped)} skipped; train/test: {parts}; {size:.1f} MiB in "
        f"{time.perf_counter() - began:.1f} s -> {store.root}"
    )
    return 0


def main(argv: list[str] | None = None) -> None:
    """Console entry: exit with 0, 1, 2 (usage) or 130 (interrupted, nothing left behind)."""
    arguments = sys.argv[1:] if argv is None else argv
    cli.run_main(lambda: prepare(cli.parse(PrepareConfig, arguments, prog="sjepa_fast.prepare")))


if __name__ == "__main__":
    main()
