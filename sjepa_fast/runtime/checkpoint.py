"""Checkpoints: `model.safetensors` for the weights, `state.pt` for what resuming needs.

All randomness is counter-based, so the step is the whole state of the random numbers.
"""

from __future__ import annotations

import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from sjepa_fast.errors import InputError
from sjepa_fast.runtime.files import new_folder

# What an optimiser's group says of the device that it steps on.
_HOW = ("capturable", "fused", "foreach")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint folder."""

    path: Path
    step: int


def list_checkpoints(run: Path) -> list[Checkpoint]:
    """Return the complete checkpoints of a run, oldest first."""
    folders = sorted((run / "checkpoints").glob("step-" + "[0-9]" * 8))
    return [Checkpoint(path, int(path.name.removeprefix("step-"))) for path in folders]


def latest_checkpoint(run: Path) -> Checkpoint:
    """Return the newest complete checkpoint of a run; raises InputError if it has none."""
    found = list_checkpoints(run)
    if not found:
        raise InputError("run", f"{run} has no checkpoint", "train first, or name another run")
    return found[-1]


def save_checkpoint(
    run: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, keep: int
) -> Checkpoint:
    """Write a checkpoint atomically after `step` steps, then drop all but the newest `keep`."""
    path = run / "checkpoints" / f"step-{step:08d}"
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with new_folder(path) as folder:
        safetensors.torch.save_file(weights, folder / "model.safetensors")
        torch.save({"step": step, "optimizer": optimizer.state_dict()}, folder / "state.pt")
    for old in list_checkpoints(run)[:-keep]:
        shutil.rmtree(old.path)
    return Checkpoint(path, step)


def load_weights(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Load a checkpoint's weights into the objective that wrote them.

    Every tensor must be there with the same shape. Raises InputError if the file is damaged or
    belongs to another configuration.
    """
    path = checkpoint.path / "model.safetensors"
    try:
        model.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, safetensors.SafetensorError, RuntimeError) as error:
        fix = "use a checkpoint of this configuration, undamaged"
        raise InputError("run", f"{path}: {error}", fix) from error


def load_state(checkpoint: Checkpoint, optimizer: torch.optim.Optimizer) -> None:
    """Load a checkpoint's optimiser state into the optimiser; nothing in the file can run code.

    Raises InputError if the file is damaged.
    """
    path = checkpoint.path / "state.pt"
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        # How to compute is this device's, not that of the run so far: on a GPU the step counts of a
        # fused optimiser must be `capturable`, or its step cannot be a CUDA graph.
        here = [
            {key: group[key] for key in _HOW if key in group} for group in optimizer.param_groups
        ]
        optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(optimizer.param_groups, here, strict=True):
            group.update(own)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        fix = "delete that checkpoint folder to resume an older one"
        raise InputError("resume", f"{path}: {error}", fix) from error
