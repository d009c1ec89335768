"""Whole training step at the paper's NTU shape: the rungs of the plain reference, and ours.

All rows train on the same synthetic clips with the same sizes; `clips_per_second` of a row is
`clips` of its `extra_info` over its median time.
"""

from __future__ import annotations

import itertools
import os
from typing import NamedTuple

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


class Setting(NamedTuple):
    """What all rows train on: the paper's preset, and synthetic clips on the device."""

    config: TrainConfig
    clips: ResidentClips
    ids: torch.Tensor
    device: torch.device
    facts: dict[str, int]


@pytest.fixture(scope="module")
def setting(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """A batch is 2 clips x 2 bodies on a CPU, 128 x 2 on a GPU; there is at least one."""
    batch = 128 if device.type == "cuda" else 2
    paper = preset("sjepa-ntu60-xsub")
    config = TrainConfig(data=paper.data, optim=OptimConfig(batch_size=batch))
    root = tmp_path_factory.mktemp("store") / "synthetic"
    store = write_synthetic_store(root, subjects=2, repetitions=2, cameras=3)
    clips = load_resident(store, config.data, device)
    facts = {"clips": batch, "bodies": config.data.bodies}
    return Setting(config, clips, torch.arange(batch, device=device), device, facts)


@pytest.mark.parametrize("rung", RUNGS)
def test_reference(timed: Timed, setting: Setting, rung: str) -> None:
    """The rungs of `reference/sjepa_step.py`.

    The crop is made outside the timed region, so these rows do not carry their data path.
    """
    config, clips, ids, device, facts = setting
    x_BMTVC = clips.eval_crop(ids, config.data)
    step, run = reference_step(config, clips, device, rung)
    timed(
        lambda: run(x_BMTVC, None, None),
        dtype=torch.bfloat16 if step.rung.amp else torch.float32,
        warmup=3 if step.rung.compiled else 1,
        row=f"reference_{rung}",
        **facts,
    )


def test_reference_with_its_feeder(timed: Timed, setting: Setting) -> None:
    """Rung A fed by its loader: in this process on a CPU, by a worker for each core on a GPU."""
    config, clips, _, device, facts = setting
    on_gpu = device.type == "cuda"
    padded = padded_clips(clips, torch.arange(len(clips.frames_N)))
    workers = (os.cpu_count() or 1) if on_gpu else 0
    loader = feeding_loader(padded, config, workers=workers, pinned=on_gpu)
    fed = itertools.chain.from_iterable(itertools.repeat(loader))
    _, run = reference_step(config, clips, device, "A")

    def step() -> torch.Tensor:
        clip, view = (x.to(device, non_blocking=True) for x in next(fed))
        return run(clip, view, None)

    timed(step, dtype=torch.float32, row="reference_A_with_feeder", **facts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("compiled", ["off", "on"], ids=["eager", "compile"])
def test_ours(timed: Timed, setting: Setting, dtype: torch.dtype, compiled: bool) -> None:
    """The library's step, with crop, view, mask, clipping, AdamW, EMA and center in the time."""
    config, clips, ids, device, facts = setting
    _, step = our_step(replace(config, runtime={"compile": compiled}), clips, device, dtype)
    row = f"ours_{'compile' if compiled == 'on' else 'eager'}"
    timed(lambda: step(ids), dtype=dtype, warmup=5, row=row, **facts)
