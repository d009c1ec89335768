# SPDX-License-Identifier: Apache-2.0
"""What pictures of clips share: their options, and the clips of a run, read when they are drawn."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.data.clips import ResidentClips, load_tables
from sjepa_fast.data.store import Store
from sjepa_fast.errors import InputError, nearest
from sjepa_fast.evaluation.request import EvalData
from sjepa_fast.evaluation.subject import asked_data
from sjepa_fast.run_folder import read_run

CPU = torch.device("cpu")


@dataclass(frozen=True)
class PictureData:
    """Which clips."""

    root: Path | None = None
    """Store; default: the one the run was trained on."""
    split: str | None = None
    """Split of the store; default: the run's."""


@dataclass(frozen=True)
class MovingRequest:
    """Options of every picture of clips."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder."""
    out: Path | None = None
    """File to write: .png, .svg, .pdf, or moving .gif or .html; default: KIND.png in the run."""
    data: PictureData = field(default_factory=PictureData)
    turn: float = 0.0
    """Degrees by which the bodies are turned about the vertical; 0 is the view from the front."""
    rate: float = 15.0
    """Frames per second of a GIF or an HTML page."""


@dataclass(frozen=True)
class ClipsRequest(MovingRequest):
    """Options of pictures of several clips."""

    clip: tuple[str, ...] = ()
    """Names of clips; default: one clip."""


@dataclass(frozen=True)
class ClipRequest(MovingRequest):
    """Options of pictures of one clip."""

    clip: str = ""
    """Name of the clip; default: the first training clip."""


@dataclass(frozen=True)
class Scene:
    """A run's clips on the CPU, with rows that are read when they are used."""

    run: Path
    config: TrainConfig
    store: Store
    clips: ResidentClips


def check_rate(rate: float) -> None:
    """Raise InputError unless a movie can have so many frames per second."""
    if not 0.1 <= rate <= 100:
        raise InputError("rate", rate, "give 0.1 to 100 frames per second")


def open_scene(request: MovingRequest) -> Scene:
    """Open the store of a run; raises InputError if there is none, or it does not fit."""
    check_rate(request.rate)
    trained = read_run(request.run)
    asked = EvalData(request.data.root, request.data.split)
    store, data = asked_data(request.run, trained.data, asked, verify=False)
    config = dataclasses.replace(trained, data=data)
    return Scene(request.run, config, store, load_tables(store, data, CPU))


def clip_ids(store: Store, names: tuple[str, ...]) -> list[int]:
    """Return the ids of clips by name; raises InputError, with the nearest names, if one is not."""
    ids = []
    for name in names:
        found = np.flatnonzero(np.asarray(store.names) == name)
        if len(found) == 0:
            known = [str(known) for known in store.names]
            fix = nearest(name, known) if len(known) < 10_000 else "name a clip of the store"
            if fix.startswith("known"):
                fix = f"name one of the {len(known)} clips, such as {known[0]}"
            raise InputError("clip", f"{name} is not in {store.name}", fix)
        ids.append(int(found[0]))
    return ids


def clip_id(scene: Scene, name: str) -> int:
    """Return the id of the named clip, or of the first training clip."""
    if name:
        return clip_ids(scene.store, (name,))[0]
    return int(scene.store.ids(scene.config.data.split, "train")[0])


def crop_of(clips: ResidentClips, ids: list[int], config: TrainConfig) -> list[NDArray[np.float32]]:
    """Return the joints that evaluation sees of clips, each (M, T, V, 3) of the bodies it has."""
    index = torch.tensor(ids, device=clips.bodies_N.device)
    crops = clips.eval_crop(index, config.data, stream="joint").cpu().numpy()
    counts = clips.bodies_N[index].tolist()
    return [crop[:count] for crop, count in zip(crops, counts, strict=True)]


def called(store: Store, index: int) -> str:
    """Return what a title says of a clip: its class, where it has one, and its name."""
    label, name = int(store.labels[index]), str(store.names[index])
    return name if label < 0 else f"{store.class_names[label]} ({name})"
