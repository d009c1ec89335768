# SPDX-License-Identifier: Apache-2.0
"""`python -m sjepa_fast.embed MODEL CLIPS... --out FILE.npz`: features of clips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from numpy.typing import NDArray

from sjepa_fast import cli
from sjepa_fast.config.schema import Pool
from sjepa_fast.data.readers.record import MAX_NUMBERS
from sjepa_fast.data.safe_arrays import load_npy
from sjepa_fast.data.store import MANIFEST, Store, open_store
from sjepa_fast.embedding.loading import Encoder, load
from sjepa_fast.embedding.model import BATCH, Features, Model
from sjepa_fast.errors import InputError
from sjepa_fast.names import say
from sjepa_fast.opening import Unreadable
from sjepa_fast.runtime.files import new_file
from sjepa_fast.runtime.progress import Display
from sjepa_fast.skeletons import SkeletonLayout


@dataclass(frozen=True)
class EmbedConfig:
    """Write the features of clips, with their names, into one .npz file."""

    model: Annotated[str, tyro.conf.Positional]
    """Run folder, saved model, owner/name on the Hugging Face Hub, or tiny."""
    clips: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Stores, .npy files, and folders of .npy files: (T, V, 3) or (bodies, T, V, 3), metres."""
    out: Path
    """File to write, .npz: `features` and `names`; an existing one is replaced."""
    pool: Pool = "mean"
    """Pooling of the tokens: mean over segments and joints; joint: over segments; pyramid: that of
    the whole time, its halves and its quarters; full: none."""
    layout: str = ""
    """Joints of the .npy files, such as ntu25; default: the model's own. Stores have their own."""
    bodies: int | None = None
    """Persons per clip; default: the run's."""
    encoder: Encoder = "target"
    """Of a run: target, the EMA encoder, or the view encoder where there is none; or view."""
    batch_size: int = BATCH
    """Clips that are encoded at a time."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:0."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute precision; auto: bfloat16 on a GPU that has it, else that of the training."""


def _sources(paths: tuple[Path, ...]) -> Iterator[Store | list[Path]]:
    """Open what holds clips: stores, and lists of .npy files."""
    if not paths:
        raise InputError("clips", "none", "name stores, .npy files or folders of them")
    for path in paths:
        if not path.is_dir():
            yield [path]
        elif (path / MANIFEST).exists():
            yield open_store(path)
        else:
            files = sorted(path.glob("*.npy"))
            if not files:
                raise InputError("clips", f"{path} has no .npy file and no store", "name another")
            yield files


def _of_store(store: Store) -> Iterator[tuple[str, NDArray[Any]]]:
    for i in range(len(store)):
        yield str(store.names[i]), store.clip(i)


def _of_files(files: list[Path]) -> Iterator[tuple[str, NDArray[Any]]]:
    for file in files:
        try:
            yield str(file), load_npy(file, MAX_NUMBERS)
        except Unreadable as error:
            raise InputError("clips", f"{file} {error}", "name a .npy file of joints") from error


def _features(model: Model, request: EmbedConfig, display: Display) -> tuple[list[str], Features]:
    names: list[str] = []
    parts: list[Features] = []
    sources = list(_sources(request.clips))
    display.count("embedding", sum(map(len, sources)))
    for source in sources:
        layout: str | SkeletonLayout | None
        if isinstance(source, Store):
            clips, layout = _of_store(source), source.layout
            names += map(str, source.names)
        else:
            clips, layout = _of_files(source), request.layout or None
            names += [file.stem for file in source]
        part = model.embed_named(
            display.each(clips, request.batch_size),
            request.pool,
            layout,
            bodies=request.bodies,
            batch_size=request.batch_size,
        )
        if parts and part.shape[1] != parts[0].shape[1]:
            fix = "give clips of one layout, or --pool mean"
            raise InputError("clips", f"rows of {parts[0].shape[1]} and {part.shape[1]}", fix)
        parts.append(part)
    return names, np.concatenate(parts)


def embed(request: EmbedConfig) -> int:
    """Embed all clips, write features and names, print a line, and return 0.

    Raises InputError if the model, a clip or the file to write cannot be used; then no file is
    written.
    """
    if request.out.suffix != ".npz":
        raise InputError("out", request.out, "name a .npz file")
    with Display() as display:
        display.phase("loading")
        model = load(
            request.model, encoder=request.encoder, device=request.device, dtype=request.dtype
        )
        try:
            # Made before the work: a folder that cannot be written is found at once.
            with new_file(request.out) as path, path.open("wb") as file:
                names, features = _features(model, request, display)
                np.savez(file, features=features, names=np.array(names))
        except OSError as error:
            value = f"{request.out} cannot be written ({error.strerror or error})"
            fix = "name a file in a folder that can be written"
            raise InputError("out", value, fix) from error
    say(f"{len(names)} clips, {features.shape[1]} numbers each ({request.pool}) -> {request.out}")
    return 0


def main(argv: list[str] | None = None) -> None:
    """Console entry: exit with 0, 1, 2 (usage) or 130 (interrupted, nothing left behind)."""
    again = "interrupted; no file is written, and the same command begins anew"
    cli.run_main(lambda: embed(cli.parse(EmbedConfig, argv, prog="sjepa_fast.embed")), again)


if __name__ == "__main__":
    main()
