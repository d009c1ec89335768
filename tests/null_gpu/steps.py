"""Training steps of every preset, and what the null GPU saw of them."""

from __future__ import annotations

import dataclasses
from collections import Counter

import torch

from benchmarks.steps import MOMENTUM, RATE, ntu_like_clips
from sjepa_fast.build import build_model, build_optimizer
from sjepa_fast.config.presets import preset
from sjepa_fast.config.presets_small import SMALL
from sjepa_fast.config.schema import Switch, TrainConfig, replace
from sjepa_fast.data.clips import ResidentClips
from sjepa_fast.runtime.dist import World
from sjepa_fast.runtime.schedule import Schedule
from sjepa_fast.skeletons import KINECT15, KINECT20, NTU25, SkeletonLayout
from sjepa_fast.training.step import TrainStep
from tests.null_gpu import gpu

GPU = torch.device("cuda")
# Eager steps before the capture, which is made in the next call.
WARMUP = 3
# What the other words of a preset's name say about its skeletons; the rest are NTU's.
_LAYOUTS = {
    "nucla": KINECT20,
    "msr_action3d": KINECT20,
    "utkinect": KINECT20,
    "florence3d": KINECT15,
    "small": KINECT20,
    "pool": KINECT20,
}


def preset_for_nucla(name: str) -> TrainConfig:
    """Return a preset by name; one that fits itself to a store is fitted to N-UCLA."""
    return preset(name, lambda: SMALL["nucla"].facts)


def layout_of(name: str) -> SkeletonLayout:
    """Return the skeleton of the data set that a preset is named after."""
    return _LAYOUTS.get(name.partition("-")[2], NTU25)


def configured(config: TrainConfig, *, compiled: Switch, batch: int = 4) -> TrainConfig:
    """Return a configuration whose step, of `batch` clips, must become a graph."""
    runtime: dict[str, object] = {"cuda_graph": "on", "compile": compiled}
    return replace(config, optim={"batch_size": batch}, runtime=runtime)


def clips_for(name: str, config: TrainConfig, device: torch.device = GPU) -> ResidentClips:
    """Make a few clips with the joints of a preset's data set and as many bodies as it takes."""
    clips = ntu_like_clips(16, device, layout=layout_of(name), two_persons=0.5)
    if config.data.bodies == 1:
        clips = dataclasses.replace(clips, bodies_N=clips.bodies_N.clamp(max=1), max_bodies=1)
    return clips


def make_step(
    config: TrainConfig, clips: ResidentClips, dtype: torch.dtype = torch.bfloat16
) -> TrainStep:
    """Build a step on the device of the clips, with constant schedules."""
    device = clips.joints_RVC.device
    ids = torch.arange(config.optim.batch_size, device=device)
    model = build_model(config, clips, ids, device)
    schedule = Schedule(
        torch.full((1000,), RATE, device=device),
        torch.full((1000,), MOMENTUM, dtype=torch.float64, device=device),
    )
    optimizer = build_optimizer(model, config)
    return TrainStep(config, clips, model, optimizer, dtype, World(), schedule)


def preset_step(name: str, *, compiled: Switch, dtype: torch.dtype, batch: int = 4) -> TrainStep:
    """Build the captured step of a preset on `batch` clips."""
    config = configured(preset_for_nucla(name), compiled=compiled, batch=batch)
    # Building reads how many bodies are present.
    with gpu.zeros_read():
        return make_step(config, clips_for(name, config), dtype)


def call(step: TrainStep) -> list[gpu.Record]:
    """Take one step and return what it asked of the card."""
    ids = torch.arange(step.config.optim.batch_size, device=GPU)
    gpu.reset()
    step(ids)
    return gpu.records()


def waits_and_host_copies(records: list[gpu.Record]) -> list[gpu.Record]:
    """Return the calls for which the host waits, or that move data between host and card."""
    return [r for r in records if r.kind == "sync" or (r.kind == "copy" and r.name != "DtoD")]


def shape_of(records: list[gpu.Record]) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return kind, name and sizes of each call."""
    return [(r.kind, r.name, r.sizes) for r in records]


def counts(records: list[gpu.Record]) -> Counter[str]:
    """Count calls by kind."""
    return Counter(r.kind for r in records)
