"""The steps that are compared, built in one place: the reference's rungs and ours.

Everything in `benchmarks/` that runs a training step gets it from here, so that a change of the
step's signature is one edit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.reference.sjepa_step import ReferenceStep
from sjepa_fast.build import build_model, build_optimizer
from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.config.traits import TRAITS
from sjepa_fast.data.clips import ResidentClips
from sjepa_fast.data.order import BatchOrder
from sjepa_fast.objectives.objective import Objective, make_step_input
from sjepa_fast.runtime.dist import World
from sjepa_fast.runtime.schedule import Schedule
from sjepa_fast.skeletons import NTU25, SkeletonLayout
from sjepa_fast.training.flops import step_flops
from sjepa_fast.training.profiling import PassClock, ProfiledStep
from sjepa_fast.training.step import StepResult, TrainStep

RATE, MOMENTUM = 1e-3, 0.9999
# Epochs in which the batch with the most bodies is looked for.
EPOCHS = 5000
# Share of NTU-60 clips that show two persons (method 1.2).
TWO_PERSONS = 0.183


def ntu_like_clips(
    count: int,
    device: torch.device,
    *,
    layout: SkeletonLayout = NTU25,
    two_persons: float = TWO_PERSONS,
) -> ResidentClips:
    """Random walks about the lengths of NTU-60's clips, 40 to 180 frames each.

    A share of `two_persons` has two bodies; the others have an absent second one.
    """
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(40, 180, (count,), generator=generator)
    bodies = 1 + (torch.rand(count, generator=generator) < two_persons).long()
    rows = frames * bodies
    joints = layout.num_joints
    pose = torch.randn(joints, 3, generator=generator) * 0.4
    steps = torch.randn(int(rows.sum()), joints, 3, generator=generator) * 0.02
    return ResidentClips(
        joints_RVC=(pose + steps).to(device),
        offsets_N=(rows.cumsum(0) - rows).to(device),
        frames_N=frames.to(device),
        bodies_N=bodies.to(device),
        labels_N=torch.zeros_like(frames).to(device),
        layout=layout,
        max_bodies=2,
    )


def clips_of_run(config: TrainConfig, clips: ResidentClips) -> ResidentClips:
    """Clips that know how many bodies a batch has at most, in thousands of epochs, as in a run."""
    batch = config.optim.batch_size
    if len(clips.frames_N) < batch or not TRAITS[config.objective.kind].target_encoder:
        return clips
    bodies_N = clips.bodies_N.cpu().numpy()
    order = BatchOrder(np.arange(len(bodies_N)), config.seed, batch, rank=0, size=1)
    most = order.most(bodies_N, EPOCHS * (len(bodies_N) // batch))
    return dataclasses.replace(clips, most_bodies=most)


def our_flops(config: TrainConfig, clips: ResidentClips) -> int:
    """FLOPs of one step of ours, which computes the targets of all absent bodies once."""
    distinct = clips_of_run(config, clips).distinct_sequences(config.optim.batch_size)
    return step_flops(config, clips.layout.num_joints, target_sequences=distinct).total


def _train_step(
    config: TrainConfig, clips: ResidentClips, device: torch.device, dtype: torch.dtype
) -> TrainStep:
    clips = clips_of_run(config, clips)
    first = torch.arange(min(config.optim.batch_size, len(clips.frames_N)), device=device)
    model = build_model(config, clips, first, device)
    # Constant schedules, longer than any measurement.
    schedule = Schedule(
        torch.full((100_000,), RATE, device=device),
        torch.full((100_000,), MOMENTUM, dtype=torch.float64, device=device),
    )
    optimizer = build_optimizer(model, config)
    return TrainStep(config, clips, model, optimizer, dtype, World(), schedule)


def our_step(
    config: TrainConfig, clips: ResidentClips, device: torch.device, dtype: torch.dtype
) -> tuple[Objective, Callable[[Tensor], Tensor]]:
    """Build the library's step as a run has it; `config.runtime` says whether it is compiled.

    Returns:
        The model, and a function that trains on clips of given ids and returns the loss, which the
        next call overwrites.
    """
    step = _train_step(config, clips, device, dtype)
    return step.model, lambda ids: step(ids).loss


def profiled_step(
    config: TrainConfig,
    clips: ResidentClips,
    device: torch.device,
    dtype: torch.dtype,
    folder: Path,
) -> ProfiledStep[StepResult]:
    """Build the library's step as `--profile` has it: called with ids, it leaves a profile."""
    step = _train_step(config, clips, device, dtype)
    clock = PassClock(step.model, step.optimizer, device)
    flops = our_flops(config, clips)
    return ProfiledStep(step, step.eager, clock, flops, dtype, folder)


def reference_step(
    config: TrainConfig, clips: ResidentClips, device: torch.device, rung: str
) -> tuple[ReferenceStep, Callable[[Tensor, Tensor | None, Tensor | None], Tensor]]:
    """Build a rung of the reference with the configuration's sizes.

    Returns:
        The step module, and a function of (clips (B, M, T, V, C), their view or None, visible ids
        or None) that trains on them and returns the loss.
    """
    model, data = config.model, config.data
    step = ReferenceStep(
        config.optim.batch_size, data.bodies, data.frames, clips.layout.num_joints,
        model.width, model.depth, model.predictor_depth, model.heads, config.seed,
        length=model.segment_length, mask_ratio=config.mask.ratio, device=device, rung=rung,
    )  # fmt: skip

    def run(x_BMTVC: Tensor, view_BMTVC: Tensor | None, ids_keep: Tensor | None) -> Tensor:
        return step.step(x_BMTVC, RATE, MOMENTUM, view_BMTVC=view_BMTVC, ids_keep=ids_keep)

    return step, run


def shared_batch(
    config: TrainConfig, clips: ResidentClips, ids: Tensor, number: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what our step number `number` draws: clips, view (B, M, T, V, C) and visible ids."""
    seed = torch.tensor(config.seed, device=ids.device)
    batch = make_step_input(clips, ids, seed, torch.tensor(number, device=ids.device), config)
    length, joints = config.model.segment_length, clips.layout.num_joints

    def grid(tokens_BNP: Tensor) -> Tensor:
        x = tokens_BNP.view(len(ids), -1, config.data.frames // length, joints, length, 3)
        return x.transpose(3, 4).reshape(*x.shape[:2], config.data.frames, joints, 3)

    return grid(batch.clip_BNP), grid(batch.view_BNP), batch.ids_keep_BK.long()
