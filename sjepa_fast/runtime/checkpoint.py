# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: `model.safetensors` for the weights, `state.safetensors` for what resuming needs.

Nothing in them can run code. `checkpoint.json`, written last, has size and checksum of both; a
checkpoint of which a byte has changed, or that belongs to another step, is refused
(`runtime/manifest.py`). So are those of older versions, which have no `checkpoint.json`:
nothing tells whether they are whole. All randomness is counter-based, so the step is the whole
state of the random numbers.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from sjepa_fast.errors import InputError
from sjepa_fast.names import printable, say
from sjepa_fast.runtime.dist import World
from sjepa_fast.runtime.files import new_folder, sync_folder
from sjepa_fast.runtime.fitting import (
    OTHER,
    check_groups,
    check_tensors,
    describe_groups,
    expected_moments,
    moments,
)
from sjepa_fast.runtime.manifest import (
    STATE,
    WEIGHTS,
    folder_name,
    read_manifest,
    read_tensors,
    refusal,
    write_manifest,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder, whole or not."""

    path: Path
    step: int


class Contents(NamedTuple):
    """What a checkpoint holds after `step` steps; `state` is None for weights from elsewhere."""

    step: int
    weights: dict[str, Tensor]
    state: dict[str, Tensor] | None
    groups: list[dict[str, Any]]


def list_checkpoints(run: Path) -> list[Checkpoint]:
    """Return the checkpoint folders of a run, oldest first; nothing in them is looked at."""
    found = (run / "checkpoints").glob("step-" + "[0-9]" * 8)
    folders = sorted(path for path in found if path.is_dir())
    return [Checkpoint(path, int(path.name.removeprefix("step-"))) for path in folders]


class Found(NamedTuple, Generic[T]):
    """The newest checkpoint that can be used, what its use returned, and why newer ones cannot."""

    checkpoint: Checkpoint
    value: T
    refused: list[tuple[Checkpoint, InputError]]


class Resumed(NamedTuple):
    """Steps done; loss and gradient norm of the K that are in no row of metrics yet."""

    step: int
    recent_K3: Tensor


def newest_that(run: Path, use: Callable[[Checkpoint], T]) -> Found[T] | None:
    """Try the checkpoints of a run, newest first, until `use` takes one; it refuses by InputError.

    Returns None if the run has no checkpoint. Raises the newest one's refusal if none is left.
    """
    refused: list[tuple[Checkpoint, InputError]] = []
    for checkpoint in reversed(list_checkpoints(run)):
        try:
            return Found(checkpoint, use(checkpoint), refused)
        except InputError as error:
            refused.append((checkpoint, error))
    if refused:
        raise refused[0][1]
    return None


def latest_checkpoint(run: Path) -> Checkpoint:
    """Return the newest checkpoint of a run that is whole; a line on stderr names each newer one.

    Raises InputError if there is none.
    """
    found = newest_that(run, verify)
    if found is None:
        raise InputError("run", f"{run} has no checkpoint", "train first, or name another run")
    for _, error in found.refused:
        say(f"note: {_shown(error)}; step {found.checkpoint.step} is used", to_stderr=True)
    return found.checkpoint


def whole_checkpoints(run: Path) -> list[Checkpoint]:
    """Return the checkpoints of a run that are whole, oldest first; a line on stderr names others.

    Raises InputError if there is none.
    """
    whole = []
    for checkpoint in list_checkpoints(run):
        try:
            verify(checkpoint)
        except InputError as error:
            say(f"note: {_shown(error)}; it is left out", to_stderr=True)
        else:
            whole.append(checkpoint)
    if not whole:
        raise InputError("run", f"{run} has no whole checkpoint", "train first")
    return whole


def resume(
    run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, world: World
) -> Resumed | None:
    """Load the newest checkpoint of a run that is whole and fits; None if it has no checkpoint.

    Process 0 chooses. It names newer ones that it refuses on stderr, and renames their folders, so
    that they neither count as the run's checkpoints nor are lost. Raises InputError if none is
    left, or another process cannot read the one that was chosen.
    """

    def load(checkpoint: Checkpoint) -> Tensor:
        recent_K3 = load_state(checkpoint, optimizer)
        load_weights(checkpoint, model)
        return recent_K3

    found = newest_that(run, load) if world.leads else None
    step = -1 if found is None else found.checkpoint.step
    if world.size > 1:
        # One more than the step, for step 0 is a checkpoint too.
        chosen = torch.tensor(step + 1, device=next(model.parameters()).device)
        step = int(world.sum_(chosen).item()) - 1
    if step < 0:
        return None
    if found is None:
        return Resumed(step, load(Checkpoint(run / "checkpoints" / folder_name(step), step)))
    for checkpoint, error in found.refused:
        aside = checkpoint.path.with_name(checkpoint.path.name.replace("step", "refused"))
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside)
        else:
            aside.unlink(missing_ok=True)
        checkpoint.path.rename(aside)
        note = f"note: {_shown(error)}; now {aside.name}; going on from step {step}"
        say(note, to_stderr=True)
    return Resumed(step, found.value)


def _shown(error: InputError) -> str:
    # A file may hold anything in place of a name.
    return printable(error.value, 900)


def verify(checkpoint: Checkpoint) -> None:
    """Compare every byte of a checkpoint with its manifest; raises InputError if one differs."""
    for name in read_manifest(checkpoint.path).files:
        read_tensors(checkpoint.path, name)


def save_checkpoint(
    run: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, keep: int
) -> Checkpoint:
    """Write a checkpoint atomically after `step` steps, then drop all but the newest `keep`."""
    return write_checkpoint(run, contents(step, model, optimizer), keep)


def contents(
    step: int, model: nn.Module, optimizer: torch.optim.Optimizer, recent_K3: Tensor | None = None
) -> Contents:
    """Collect what is saved after `step` steps; nothing is copied.

    `recent_K3` has the history of the K steps since the last row of metrics, as a step keeps it.
    """
    state = moments(optimizer)
    state["recent"] = torch.zeros(0, 3) if recent_K3 is None else recent_K3
    return Contents(step, dict(model.state_dict()), state, describe_groups(optimizer))


def write_checkpoint(run: Path, whole: Contents, keep: int | None) -> Checkpoint:
    """Write a checkpoint atomically, then drop all but the newest `keep` of its step and before.

    None drops nothing.

    Raises OSError if it cannot be written, also where the run's folder is gone; then all is as
    before.
    """
    path = run / "checkpoints" / folder_name(whole.step)
    path.parent.mkdir(exist_ok=True)
    notes = {"step": str(whole.step)}
    before = [old.path for old in list_checkpoints(run) if old.step < whole.step]
    dropped = before[: max(0, len(before) + 1 - keep)] if keep else []
    with contextlib.ExitStack() as hidden:
        with new_folder(path) as folder:
            _write(folder / WEIGHTS, whole.weights, notes)
            if whole.state is not None:
                _write(folder / STATE, whole.state, {**notes, "groups": json.dumps(whole.groups)})
            write_manifest(folder, whole.step)
            # Before the new one is there, if another is left: who is killed now resumes from that
            # and saves again. Afterwards a run that is over would keep what it was to drop.
            if len(dropped) < len(before):
                sync_folder(folder)
                hidden.enter_context(_hidden(dropped))
        if len(dropped) == len(before):
            hidden.enter_context(_hidden(dropped))
    return Checkpoint(path, whole.step)


@contextlib.contextmanager
def _hidden(folders: list[Path]) -> Iterator[None]:
    """Give folders hidden names, under which they are no checkpoints; delete them at the end.

    An error in the block brings them back.
    """
    names = {folder: folder.with_name(f".{folder.name}.dropped") for folder in folders}
    try:
        for folder, name in names.items():
            folder.rename(name)
        yield
    except BaseException:
        for folder, name in names.items():
            if name.exists():
                name.rename(folder)
        raise
    for name in names.values():
        shutil.rmtree(name)


def _write(path: Path, tensors: dict[str, Tensor], notes: dict[str, str]) -> None:
    dense = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        safetensors.torch.save_file(dense, path, notes)
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from error


def load_weights(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Load a checkpoint's weights into the objective that wrote them.

    Raises InputError if the checkpoint is damaged, or a tensor is missing, unknown or of another
    shape or type; then nothing is loaded.
    """
    stored, _ = read_tensors(checkpoint.path, WEIGHTS)
    check_tensors(checkpoint.path / WEIGHTS, stored, model.state_dict())
    model.load_state_dict(stored)


def load_state(checkpoint: Checkpoint, optimizer: torch.optim.Optimizer) -> Tensor:
    """Load a checkpoint's optimiser state, and return the history of its last steps, (K, 3).

    How to step is the device's and not the run's: on a GPU the step counts must be there, or the
    step cannot be a CUDA graph. Raises InputError if the checkpoint is damaged, or a tensor or
    group does not fit; then nothing is loaded.
    """
    stored, notes = read_tensors(checkpoint.path, STATE)
    path = checkpoint.path / STATE
    recent_K3 = stored.pop("recent", None)
    if recent_K3 is None or recent_K3.dtype != torch.float32 or recent_K3.shape[1:] != (3,):
        raise refusal(path, "has no losses of the last steps", OTHER)
    check_groups(path, notes.get("groups", ""), describe_groups(optimizer))
    wanted = moments(optimizer) or expected_moments(stored, optimizer)
    check_tensors(path, stored, wanted)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, tensor in stored.items():
        _, index, key = name.split(".")
        own = optimizer.state[parameters[int(index)]]
        if key not in own:
            own[key] = torch.empty_like(wanted[name])
        own[key].copy_(tensor)
    return recent_K3.clone()
