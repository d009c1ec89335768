# SPDX-License-Identifier: Apache-2.0
"""Why a run stopped: the first tensor of its last skipped step that is not finite.

A skipped step has changed nothing, and all draws follow from (seed, step, clip), so the step can be
replayed: the same batch, the same masks, the same weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sjepa_fast.data.clips import ResidentClips
from sjepa_fast.data.feed import batch_order
from sjepa_fast.data.store import Store
from sjepa_fast.errors import InputError
from sjepa_fast.objectives.objective import StepInput, make_step_input, mask_again
from sjepa_fast.runtime.device import autocast
from sjepa_fast.runtime.files import write_json
from sjepa_fast.runtime.saving import what_is_kept
from sjepa_fast.training.health import Health
from sjepa_fast.training.step import TrainStep

_NETWORKS = ("target_encoder", "view_encoder", "predictor", "projector")
_NAMED_IN_LINE = 3


@dataclasses.dataclass(frozen=True)
class Finding:
    """The first tensor that is not finite: of a clip, weight, output, the loss or a gradient."""

    what: str
    name: str
    layer: str = ""
    clips: tuple[int, ...] = ()
    """Places in the batch of the clips that are not finite themselves."""

    def __str__(self) -> str:
        return f"{self.what} {self.name}" + (f" ({self.layer})" if self.layer else "")


def diagnose(
    step: TrainStep, health: Health, store: Store, sampled: ResidentClips, part: np.ndarray
) -> str:
    """Replay the last skipped step, write `diagnosis.json` and return the line that says it all.

    Every process replays its own share; the first that finds something is reported, with its clips.
    `sampled` and `part` are the clips and ids that batches are drawn from.
    """
    config, world = step.config, step.world
    kept = what_is_kept(config.run)
    if health.failed is None:
        facts = {"step": int(step.step), "what": "weight", "name": health.broken}
        if world.leads:
            write_json(config.run / "diagnosis.json", facts)
        return f"stopped at step {facts['step']}: {health.broken} is not finite; {kept}"
    order = batch_order(sampled, part, config, world)
    ids = order.ids(health.failed // config.objective.target_every)
    finding = replay(step, sampled, torch.from_numpy(ids).to(step.seed.device), health.failed)
    names = _sample_names(store, sampled)[ids].tolist()
    own = (world.rank, finding, ids.tolist(), names)
    found: list[Any] = [own]
    if world.size > 1:
        found = [None] * world.size
        dist.all_gather_object(found, own)
    rank, finding, all_ids, names = next((x for x in found if x[1] is not None), found[0])
    loss, norm = (x if math.isfinite(x) else None for x in health.last[:2])
    broken = [names[k] for k in finding.clips] if finding else []
    facts = {
        "step": health.failed + 1,
        "skipped_in_a_row": max(health.in_a_row, health.max_skipped),
        "skipped": health.skipped,
        "loss": loss,
        "grad_norm": norm,
        "process": rank,
        "what": finding.what if finding else None,
        "name": finding.name if finding else None,
        "layer": finding.layer if finding else None,
        "broken_clips": broken,
        "clips": [{"id": i, "name": name} for i, name in zip(all_ids, names, strict=True)],
    }
    if world.leads:
        write_json(config.run / "diagnosis.json", facts)
    where = "its replay is finite" if finding is None else f"first not finite: {finding}"
    shown = broken or names
    more = f" and {len(shown) - _NAMED_IN_LINE} more" if len(shown) > _NAMED_IN_LINE else ""
    clips = ", ".join(json.dumps(name) for name in shown[:_NAMED_IN_LINE]) + more
    return (
        f"stopped: {facts['skipped_in_a_row']} steps in a row up to step {facts['step']} were not "
        f"finite and were skipped; {where}; clips {clips}; {kept}; see {config.run}/diagnosis.json"
    )


def _sample_names(store: Store, sampled: ResidentClips) -> np.ndarray:
    """Name of the clip that each sample is of; a sample is a clip, or one of its bodies."""
    names = np.asarray(store.names)
    if len(sampled.frames_N) == len(names):
        return names
    return np.repeat(names, store.bodies)


def replay(step: TrainStep, clips: ResidentClips, ids_B: Tensor, number: int) -> Finding | None:
    """Do forward and backward of step `number` eagerly and return the first tensor that is broken.

    Changes no weight; returns None if all are finite.
    """
    # The run is over, and a captured step keeps the memory of all that it makes.
    step.graph = None
    if ids_B.is_cuda:
        torch.cuda.empty_cache()
    compiles = "torch._dynamo" in sys.modules
    eagerly = torch.compiler.set_stance("force_eager") if compiles else contextlib.nullcontext()
    with eagerly:
        found, first = _broken_weight(step.model), 0
        for part in step.parts(ids_B):
            if found is None:
                found = _replay_part(step, clips, part, number)
                if found is not None:
                    places = tuple(first + k for k in found.clips)
                    found = dataclasses.replace(found, clips=places)
            first += len(part)
    step.forget()
    return found


def _replay_part(
    step: TrainStep, clips: ResidentClips, ids_B: Tensor, number: int
) -> Finding | None:
    since = number % step.config.objective.target_every
    at = torch.tensor(number - since, device=ids_B.device)
    keys = clips, ids_B, step.seed
    try:
        batch = make_step_input(*keys, at, step.config)
        if since:
            batch = mask_again(batch, *keys, at + since, step.config)
    except InputError as error:
        return Finding("clip", str(error))
    if (found := _broken_clips(batch, len(ids_B), clips.max_bodies)) is not None:
        return found
    with _watched(step) as seen:
        with autocast(ids_B.device, step.dtype):
            # Not through the wrapper of several processes, which would wait for the others.
            output = step.model(batch)
        if not seen and not _finite(output.loss):
            seen.append(Finding("loss", step.config.objective.kind))
        if not seen:
            output.loss.backward()
    return seen[0] if seen else None


def _broken_weight(model: nn.Module) -> Finding | None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not _finite(tensor):
            owner = model.get_submodule(name.rpartition(".")[0])
            return Finding("weight", name, type(owner).__name__)
    return None


def _broken_clips(batch: StepInput, clips: int, bodies: int) -> Finding | None:
    for name, tokens_BNP in (("clip", batch.clip_BNP), ("view", batch.view_BNP)):
        # Crops, clips, bodies.
        by_clip = torch.isfinite(tokens_BNP).flatten(1).all(dim=1).view(-1, clips, bodies)
        finite = by_clip.all(dim=2).all(dim=0)
        if not bool(finite.all()):
            places = (~finite).nonzero().flatten().tolist()
            return Finding("clip", f"tokens of the {name}", clips=tuple(places))
    return None


@contextlib.contextmanager
def _watched(step: TrainStep) -> Iterator[list[Finding]]:
    """Collect outputs of layers, then gradients, that are not finite, in the order they appear."""
    seen: list[Finding] = []
    handles: list[Any] = []

    def watch_layer(name: str, layer: nn.Module) -> None:
        def look(_: nn.Module, __: object, output: object) -> None:
            if not all(map(_finite, _tensors(output))):
                seen.append(Finding("output of", name, type(layer).__name__))

        handles.append(layer.register_forward_hook(look))

    def watch_gradient(name: str, layer: nn.Module, weight: nn.Parameter) -> None:
        def look(tensor: Tensor) -> None:
            if tensor.grad is not None and not _finite(tensor.grad):
                seen.append(Finding("gradient of", name, type(layer).__name__))

        handles.append(weight.register_post_accumulate_grad_hook(look))

    for network in _NETWORKS:
        computing = step.model.network(network)
        if computing is None:
            continue
        for path, layer in computing.named_modules(prefix=network):
            watch_layer(path, layer)
            for name, weight in layer.named_parameters(prefix=path, recurse=False):
                if weight.requires_grad:
                    watch_gradient(name, layer, weight)
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _tensors(value: object) -> Iterator[Tensor]:
    """Yield the tensors of an output: one, or those of a tuple or a list."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
