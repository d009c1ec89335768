# SPDX-License-Identifier: Apache-2.0
"""Writes `report.html`: at the end of a run, and of runs that have ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from sjepa_fast._version import __version__
from sjepa_fast.config.schema import RuntimeConfig
from sjepa_fast.data.clips import ResidentClips, load_tables
from sjepa_fast.data.store import Store, open_store
from sjepa_fast.errors import InputError
from sjepa_fast.names import printable
from sjepa_fast.objectives.objective import Objective
from sjepa_fast.reporting.page import LARGEST, as_json, empty_bytes, page
from sjepa_fast.reporting.records import Run, described, differing, folded, read_run_records
from sjepa_fast.reporting.scene import Networks, scene
from sjepa_fast.runtime.checkpoint import latest_checkpoint
from sjepa_fast.runtime.device import pick_device
from sjepa_fast.runtime.files import write_text
from sjepa_fast.runtime.manifest import WEIGHTS, read_tensors

NAME = "report.html"
# Of a page: what all scenes together may take, and what the rest leaves them at least.
SCENE_BYTES = 780_000
Scene = Callable[[Run, int], dict[str, Any] | None]


def try_page(folder: Path, store: Store, clips: ResidentClips, model: Objective) -> str:
    """Write the page of a run that has just ended into its folder.

    Returns a line that says where it is, or why there is none: all else of the run is saved, so
    nothing that goes wrong here may end it.
    """
    out = folder / NAME

    def scene_of(run: Run, budget: int) -> dict[str, Any] | None:
        networks = Networks.of(run.config, store, model.state_dict())
        return scene(networks, store, clips, budget)

    try:
        notes = write_page([read_run_records(folder)], out, scene_of)
    except Exception as error:
        reason = " ".join(str(error).split())
        return f"no {NAME}: {type(error).__name__}: {reason}"
    return "; ".join([f"report: {out}", *notes])


def write_page(runs: Sequence[Run], out: Path, scene_of: Scene) -> list[str]:
    """Write the page of runs; seeds of one setting are folded into mean and standard error.

    Args:
        runs: Their records.
        out: The file.
        scene_of: Makes the scene of a run in so many bytes; an InputError says why there is none.

    Returns:
        What the page has not, one line each.
    """
    groups = folded(runs)
    keys = differing(groups) if len(groups) > 1 else []
    notes: list[str] = []
    parts = [described(group, _name(group, keys)) for group in groups]
    data: dict[str, Any] = {"version": __version__, "differing": keys, "groups": parts}
    for part, group in zip(parts, groups, strict=True):
        part["settings"] = {key: printable(group[0].settings[key], 200) for key in keys}
    _drop_large(data, notes)
    left = LARGEST - empty_bytes() - len(as_json(data)) - 20_000
    budget = min(SCENE_BYTES, left) // len(groups)
    for part, group in zip(parts, groups, strict=True):
        try:
            part["scene"] = scene_of(group[0], budget)
            if part["scene"] is None:
                notes.append(f"no clips of {group[0].folder}: none fits into the page")
        except InputError as error:
            part["scene"] = None
            notes.append(f"no clips of {group[0].folder}: {error}")
    data["notes"] = [printable(note) for note in notes]
    write_text(out, page(data))
    return notes


def _name(group: Sequence[Run], keys: Sequence[str]) -> str:
    if not keys:
        return group[0].folder.resolve().name
    return ", ".join(f"{key} {group[0].settings[key]}" for key in keys[:4])


def _drop_large(data: dict[str, Any], notes: list[str]) -> None:
    """Leave out the largest confusion matrices where not even the figures fit into the page."""
    room = LARGEST - empty_bytes() - 100_000
    parts = [part for part in data["groups"] if part["confusion"] is not None]
    for part in sorted(parts, key=lambda part: -len(part["confusion"]["cells"])):
        if len(as_json(data)) <= room:
            return
        part["confusion"] = None
        notes.append(f"no confusion matrix of {part['name']}: it does not fit into the page")


def scene_of_folder(run: Run, budget: int) -> dict[str, Any] | None:
    """Return the scene of a run from its last checkpoint and the store that it was trained on.

    Raises InputError if one of them is not there, or the store is another one now.
    """
    config = run.config
    if config.data.root is None:
        raise InputError("data.root", "not given", "train it once more")
    store = open_store(config.data.root, verify=False)
    if store.fingerprint != run.data.get("fingerprint"):
        value = f"{config.data.root} holds other clips than when the run was trained"
        raise InputError("data.root", value, "restore that store")
    device = pick_device(RuntimeConfig(device="auto"), 0)
    data = dataclasses.replace(config.data, backend="disk")
    clips = load_tables(store, data, device)
    weights, _ = read_tensors(latest_checkpoint(run.folder).path, WEIGHTS)
    weights = {name: tensor.to(device) for name, tensor in weights.items()}
    try:
        networks = Networks.of(config, store, weights)
    except RuntimeError as error:
        fix = "use the version that wrote it"
        raise InputError("run", f"{run.folder}: {error}", fix) from error
    with torch.no_grad():
        return scene(networks, store, clips, budget)
