# SPDX-License-Identifier: Apache-2.0
"""When a run writes its checkpoints: at once on a CPU; on a GPU in a thread while training goes on.

On a GPU the training thread enqueues one copy of all tensors to a spare block of the device's
memory, which takes its place in the stream before the next step; a second stream brings the block
to pinned memory. Only the thread that writes waits for it.
"""

from __future__ import annotations

import os
import shlex
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sjepa_fast import cli
from sjepa_fast.names import say
from sjepa_fast.runtime.checkpoint import (
    Contents,
    contents,
    list_checkpoints,
    write_checkpoint,
)
from sjepa_fast.runtime.fitting import describe_groups

_ALIGNED = 64
# What names of tensors in the spare block begin with.
_WEIGHTS, _STATE = "weights ", "state "


def what_is_kept(run: Path) -> str:
    """Say which step of a run is saved, and the command that goes on from there."""
    found = list_checkpoints(run)
    if not found:
        return "no step is saved"
    command = cli.command("sjepa_fast.train")
    here = os.environ.get("LOCAL_WORLD_SIZE")
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE") == here:
        command = f"torchrun --nproc-per-node={here} -m -- sjepa_fast.train"
    resumed = f"{command} --run {shlex.quote(str(run))} --resume auto"
    return f"step {found[-1].step} is saved; {resumed} goes on"


def failed_to_write(run: Path, what: str, error: OSError) -> OSError:
    """Return the one-line error of a run that can no longer write its folder."""
    return OSError(f"{run}: cannot write {what}: {error.strerror or error}; {what_is_kept(run)}")


class Saver:
    """Writes a run's checkpoints, never two at once; leaving the block waits for the last one.

    An error of the thread is raised by the next `save`, or by `finish`. `stalls` has the seconds
    for which each save held training up.
    """

    def __init__(
        self, run: Path, keep: int, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        self.run, self.keep, self.model, self.optimizer = run, keep, model, optimizer
        self.stalls: list[float] = []
        self.reported = 0
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None
        self.spare: _Spare | None = None
        whole = contents(0, model, optimizer)
        tensors = [*whole.weights.values(), *(whole.state or {}).values()]
        if any(tensor.is_cuda for tensor in tensors):
            # Now, and not at the first save: pinning memory takes long.
            try:
                self.spare = _Spare(whole)
                # The first copies load their kernels.
                self.spare.copy(0, whole.groups, None)[1].synchronize()
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                say(f"note: training waits for each save, for lack of memory ({reason})")

    def __enter__(self) -> Saver:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        """Wait for the checkpoint that is being written, unless the user cannot wait."""
        if kind is None:
            self.finish()
        elif not issubclass(kind, KeyboardInterrupt):
            try:
                self.finish()
            except OSError as error:
                # The block's own error is the one to be raised.
                say(f"note: {error}", to_stderr=True)

    def save(self, step: int, recent_K3: Tensor | None = None, *, drop: bool = True) -> None:
        """Save the run after `step` steps; `recent_K3` as in `contents`.

        Without `drop` all older checkpoints stay.

        Raises OSError, in one line that says what is kept, if this or the last one could not be
        written.
        """
        began, keep = time.perf_counter(), self.keep if drop else None
        self.finish()
        if self.spare is None:
            self._write(contents(step, self.model, self.optimizer, recent_K3), keep, None)
            self.finish()
        else:
            copied, ready = self.spare.copy(step, describe_groups(self.optimizer), recent_K3)
            # A daemon: a second Ctrl-C does not wait for it, and what it leaves is no checkpoint.
            self.thread = threading.Thread(
                target=self._write, args=(copied, keep, ready), daemon=True
            )
            self.thread.start()
        self.stalls.append(time.perf_counter() - began)

    def last_stall(self) -> dict[str, float]:
        """Return `save_ms`, for which saves since the last call held training up, if any did."""
        new, self.reported = self.stalls[self.reported :], len(self.stalls)
        return {"save_ms": 1000 * sum(new)} if new else {}

    def stalled(self) -> str:
        """Return the end of a sentence: how many saves there were, and how long each took."""
        if not self.stalls:
            return ""
        mean, most = sum(self.stalls) / len(self.stalls), max(self.stalls)
        each = f"{1000 * mean:.1f} ms each, {1000 * most:.1f} at most"
        return f"; training waited for {len(self.stalls)} saves, {each}"

    def finish(self) -> None:
        """Wait until the last checkpoint is written; raises what its thread raised."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        error, self.error = self.error, None
        if error is not None:
            raise error

    def _write(self, whole: Contents, keep: int | None, ready: torch.cuda.Event | None) -> None:
        try:
            if self.spare is not None and ready is not None:
                self.spare.check(contents(whole.step, self.model, self.optimizer))
                ready.synchronize()
            write_checkpoint(self.run, whole, keep)
        except OSError as error:
            self.error = failed_to_write(self.run, f"the checkpoint of step {whole.step}", error)
        except Exception as error:
            self.error = error


class _Spare:
    """Room for everything in a checkpoint, in one block on the device and one in pinned memory.

    Weights and moments are looked up once: a run changes them in place, and looking them up again
    would take longer than enqueueing their copies. `check`, for which nobody waits, makes sure.
    """

    def __init__(self, whole: Contents) -> None:
        self.tensors = _flat(whole)
        self.weights = list(whole.weights)
        device = next(tensor.device for tensor in self.tensors.values() if tensor.is_cuda)
        places, size = {}, 0
        for name, tensor in self.tensors.items():
            places[name] = size
            size += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
        self.block = torch.empty(size, dtype=torch.uint8, device=device)
        self.pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        self.here = {n: _view(self.pinned, at, self.tensors[n]) for n, at in places.items()}
        # Copies of one type are grouped into a few launches.
        self.copies: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for name, tensor in self.tensors.items():
            there, sources = self.copies.setdefault(tensor.dtype, ([], []))
            there.append(_view(self.block, places[name], tensor))
            sources.append(tensor.detach())
        self.stream = torch.cuda.Stream(device)

    def copy(
        self, step: int, groups: list[dict[str, Any]], recent_K3: Tensor | None
    ) -> tuple[Contents, torch.cuda.Event]:
        """Enqueue copies of the tensors; return them, to be read once the event has happened."""
        for there, sources in self.copies.values():
            torch._foreach_copy_(there, sources)
        self.stream.wait_stream(torch.cuda.current_stream(self.block.device))
        ready = torch.cuda.Event()
        with torch.cuda.stream(self.stream):
            self.pinned.copy_(self.block, non_blocking=True)
            ready.record()
        # Of a varying size: empty, but for a run that was asked to stop.
        state = {"recent": torch.zeros(0, 3) if recent_K3 is None else recent_K3.cpu()}
        weights = {name: self.here[_WEIGHTS + name] for name in self.weights}
        state |= {
            name.removeprefix(_STATE): tensor
            for name, tensor in self.here.items()
            if name.startswith(_STATE)
        }
        return Contents(step, weights, state, groups), ready

    def check(self, now: Contents) -> None:
        """Raise RuntimeError if weights or moments are no longer the tensors that are copied."""
        changed = _replaced(self.tensors, _flat(now))
        if changed:
            raise RuntimeError(f"{changed} is another tensor than when the run began; not saved")


def _replaced(before: dict[str, Tensor], now: dict[str, Tensor]) -> str:
    """Return the first name that is new, gone or of another tensor; empty if there is none."""
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old is None or new is None or old.data_ptr() != new.data_ptr():
            return name
    return ""


def _flat(whole: Contents) -> dict[str, Tensor]:
    flat = {_WEIGHTS + name: tensor for name, tensor in whole.weights.items()}
    state = {name: tensor for name, tensor in (whole.state or {}).items() if name != "recent"}
    return flat | {_STATE + name: tensor for name, tensor in state.items()}


def _view(block: Tensor, at: int, like: Tensor) -> Tensor:
    return block[at : at + like.nbytes].view(like.dtype).view(like.shape)
