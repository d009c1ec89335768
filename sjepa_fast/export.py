# SPDX-License-Identifier: Apache-2.0
"""`python -m sjepa_fast.export SOURCE --format FORMAT --out FILE`: models and stores for others.

A model (`pt2`, `onnx`) becomes a file that other runtimes run, a store (`ctrgcn`) one that other
code trains on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

from sjepa_fast import cli
from sjepa_fast.config.schema import Pool
from sjepa_fast.config.validation import LARGEST
from sjepa_fast.data.ctrgcn_writer import write_ctrgcn
from sjepa_fast.data.store import open_store
from sjepa_fast.embedding.loading import Encoder, load
from sjepa_fast.errors import InputError, nearest
from sjepa_fast.names import say


@dataclass(frozen=True)
class ExportConfig:
    """Write a model as a file for other runtimes, or a store as one for other code."""

    source: Annotated[str, tyro.conf.Positional]
    """pt2, onnx: run folder, saved model, owner/name on the Hugging Face Hub, or tiny. ctrgcn:
    store."""
    format: str
    """Of a model: pt2 (torch.export), or onnx. Of a store: ctrgcn, the .npz of CTR-GCN and MAMP."""
    out: Path
    """File to write, whose ending is .pt2, .onnx or .npz; an existing one is replaced."""
    pool: Pool = "mean"
    """pt2, onnx: pooling of the output `features`, as in embed; the output `tokens` has none."""
    layout: str = ""
    """pt2, onnx: joints of the clips, such as ntu25; default: the model's own."""
    bodies: int | None = None
    """pt2, onnx: persons per clip; default: the run's."""
    encoder: Encoder = "target"
    """pt2, onnx: of a run, target or view."""
    split: str = "xsub"
    """ctrgcn: split whose train and test parts are written."""
    frames: int = 300
    """ctrgcn: frames of a padded clip."""
    twin: bool = False
    """ctrgcn: repeat a lone body as the second one, as the field's NTU-120 files do."""


class Format(NamedTuple):
    """What writes a format, the ending of its files, and the flags that belong to it."""

    write: Callable[[ExportConfig], str]
    ending: str
    flags: tuple[str, ...]


def _model(request: ExportConfig) -> str:
    model = load(request.source, encoder=request.encoder, device="cpu", dtype="float32")
    layout = request.layout or None
    apart = model.export(request.out, request.pool, layout, bodies=request.bodies)
    size = request.out.stat().st_size / 2**20
    return f"{model.content.origin}: {size:.1f} MiB, within {apart:.0e} of embed -> {request.out}"


def _store(request: ExportConfig) -> str:
    if not request.out.parent.is_dir():
        raise InputError("out", f"{request.out.parent} is no folder", "make it first")
    most = LARGEST["data.frames"]
    if not 0 < request.frames <= most:
        raise InputError("frames", request.frames, f"give 1 to {most}")
    store = open_store(Path(request.source))
    train, test = write_ctrgcn(store, request.split, request.out, request.frames, request.twin)
    size = request.out.stat().st_size / 2**20
    return f"{store.name} {request.split}: {train}/{test} clips, {size:.1f} MiB -> {request.out}"


_OF_MODELS = ("pool", "layout", "bodies", "encoder")
FORMATS = {
    "pt2": Format(_model, ".pt2", _OF_MODELS),
    "onnx": Format(_model, ".onnx", _OF_MODELS),
    "ctrgcn": Format(_store, ".npz", ("split", "frames", "twin")),
}


def export(request: ExportConfig) -> int:
    """Export a model or a store, print what was written, and return 0.

    Raises InputError if the format is unknown, a flag belongs to another one, or the source or the
    file to write does not fit; RunStopped if an exported model has other features.
    """
    name = request.format
    if name not in FORMATS:
        raise InputError("format", name, nearest(name, list(FORMATS)))
    form = FORMATS[name]
    for field in dataclasses.fields(ExportConfig):
        value = getattr(request, field.name)
        owners = [other for other, its in FORMATS.items() if field.name in its.flags]
        if owners and name not in owners and value != field.default:
            raise InputError(field.name, value, f"it belongs to --format {' or '.join(owners)}")
    if request.out.suffix != form.ending:
        raise InputError("out", request.out, f"name a {form.ending} file")
    say(form.write(request))
    return 0


def main(argv: list[str] | None = None) -> None:
    """Console entry: exit with 0, 1, 2 (usage) or 130 (interrupted, nothing left behind)."""
    cli.run_main(lambda: export(cli.parse(ExportConfig, argv, prog="sjepa_fast.export")))


if __name__ == "__main__":
    main()
