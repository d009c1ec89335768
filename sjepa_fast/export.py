"""`python -m sjepa_fast.export ctrgcn --store STORE --out FILE`: a store for other code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from sjepa_fast import cli
from sjepa_fast.config.validation import LARGEST
from sjepa_fast.data.ctrgcn_writer import write_ctrgcn
from sjepa_fast.data.store import open_store
from sjepa_fast.errors import InputError, nearest
from sjepa_fast.names import say


@dataclass(frozen=True)
class ExportConfig:
    """Write a store in a format that other code reads."""

    format: Annotated[str, tyro.conf.Positional]
    """ctrgcn: the .npz of CTR-GCN and MAMP."""
    store: Path
    """Store to read."""
    out: Path
    """File to write; an existing one is replaced."""
    split: str = "xsub"
    """Split whose train and test parts are written."""
    frames: int = 300
    """Frames of a padded clip."""
    twin: bool = False
    """Repeat a lone body as the second one, as the field's NTU-120 files do."""


def export(request: ExportConfig) -> int:
    """Export a store, print what was written, and return 0.

    Raises InputError if the format is unknown, or the store or the frames do not fit it.
    """
    if request.format != "ctrgcn":
        raise InputError("format", request.format, nearest(request.format, ["ctrgcn"]))
    if not request.out.parent.is_dir():
        raise InputError("out", f"{request.out.parent} is no folder", "make it first")
    if request.out.suffix != ".npz":
        raise InputError("out", request.out, "name a .npz file")
    most = LARGEST["data.frames"]
    if not 0 < request.frames <= most:
        raise InputError("frames", request.frames, f"give 1 to {most}")
    store = open_store(request.store)
    train, test = write_ctrgcn(store, request.split, request.out, request.frames, request.twin)
    size = request.out.stat().st_size / 2**20
    say(f"{store.name} {request.split}: {train}/{test} clips, {size:.1f} MiB -> {request.out}")
    return 0


def main(argv: list[str] | None = None) -> None:
    """Console entry: exit with 0, 1, 2 (usage) or 130 (interrupted, nothing left behind)."""
    cli.run_main(lambda: export(cli.parse(ExportConfig, argv, prog="sjepa_fast.export")))


if __name__ == "__main__":
    main()
