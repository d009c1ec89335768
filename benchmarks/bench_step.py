"""Whole training step at the paper's NTU shape: the rungs of the plain reference, and ours.

All rows train on the same synthetic clips with the same sizes; `clips_per_second` of a row is
`clips` of its `extra_info` over its median time.
"""

from __future__ import annotations

import itertools
import os

import pytest
import torch

from benchmarks.conftest import Timed
from benchmarks.reference.feeder import feeding_loader, padded_clips
from benchmarks.reference.sjepa_step import RUNGS
from benchmarks.steps import our_step, reference_step
from sjepa_fast.config.presets import preset
from sjepa_fast.config.schema import OptimConfig, TrainConfig, replace
from sjepa_fast.data.clips import ResidentClips, load_resident
from sjepa_fast.data.synthetic import write_synthetic_store

pytestmark = pytest.mark.benchmark(group="sjepa step")


@pytest.fixture(scope="module")
def config(device: torch.device) -> TrainConfig:
    """The paper's preset: 2 clips x 2 bodies on a CPU, 128 x 2 on a GPU."""
    paper = preset("sjepa-ntu60-xsub")
    clips = 128 if device.type == "cuda" else 2
    return TrainConfig(data=paper.data, optim=OptimConfig(batch_size=clips))


@pytest.fixture(scope="module")
def clips(
    config: TrainConfig, device: torch.device, tmp_path_factory: pytest.TempPathFactory
) -> ResidentClips:
    """Synthetic clips on the device, at least one batch of them."""
    root = tmp_path_factory.mktemp("store") / "synthetic"
    store = write_synthetic_store(root, subjects=2, repetitions=2, cameras=3)
    return load_resident(store, config.data, device)


@pytest.fixture(scope="module")
def batch_ids(config: TrainConfig, device: torch.device) -> torch.Tensor:
    return torch.arange(config.optim.batch_size, device=device)


@pytest.mark.parametrize("rung", RUNGS)
def test_reference(
    timed: Timed,
    config: TrainConfig,
    clips: ResidentClips,
    batch_ids: torch.Tensor,
    device: torch.device,
    rung: str,
) -> None:
    """The rungs of `reference/sjepa_step.py`.

    The crop is made outside the timed region, so these rows do not carry their data path.
    """
    x_BMTVC = clips.eval_crop(batch_ids, config.data)
    step, run = reference_step(config, clips, device, rung)
    timed(
        lambda: run(x_BMTVC, None, None),
        dtype=torch.bfloat16 if step.rung.amp else torch.float32,
        warmup=3 if step.rung.compiled else 1,
        row=f"reference_{rung}",
        clips=len(batch_ids),
        bodies=config.data.bodies,
    )


def test_reference_with_its_feeder(
    timed: Timed,
    config: TrainConfig,
    clips: ResidentClips,
    batch_ids: torch.Tensor,
    device: torch.device,
) -> None:
    """Rung A fed by its loader: in this process on a CPU, by a worker for each core on a GPU."""
    on_gpu = device.type == "cuda"
    padded = padded_clips(clips, torch.arange(len(clips.frames_N)))
    workers = (os.cpu_count() or 1) if on_gpu else 0
    loader = feeding_loader(padded, config, workers=workers, pinned=on_gpu)
    fed = itertools.chain.from_iterable(itertools.repeat(loader))
    _, run = reference_step(config, clips, device, "A")

    def step() -> torch.Tensor:
        clip, view = next(fed)
        return run(clip.to(device, non_blocking=True), view.to(device, non_blocking=True), None)

    timed(
        step,
        dtype=torch.float32,
        row="reference_A_with_feeder",
        clips=len(batch_ids),
        bodies=config.data.bodies,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compile"])
def test_ours(
    timed: Timed,
    config: TrainConfig,
    clips: ResidentClips,
    batch_ids: torch.Tensor,
    device: torch.device,
    dtype: torch.dtype,
    compiled: bool,
) -> None:
    """The library's step, with crop, view, mask, clipping, AdamW, EMA and center in the time."""
    _, step = our_step(replace(config, runtime={"compile": compiled}), clips, device, dtype)
    timed(
        lambda: step(batch_ids),
        dtype=dtype,
        warmup=5,
        row=f"ours_{'compile' if compiled else 'eager'}",
        clips=len(batch_ids),
        bodies=config.data.bodies,
    )
