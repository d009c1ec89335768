"""Whole training step at the paper's NTU shape: the plain reference, and what is beside it.

All rows train on the same synthetic clips with the same sizes; `clips_per_second` of a row is
`clips` of its `extra_info` over its median time.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks.conftest import Timed
from benchmarks.reference.sjepa_step import ReferenceStep
from sjepa_fast.build import build_model, build_optimizer
from sjepa_fast.config import OptimConfig, RuntimeConfig, TrainConfig
from sjepa_fast.data.loader import ResidentClips, load_resident
from sjepa_fast.data.synthetic import write_synthetic_store
from sjepa_fast.presets import sjepa_ntu60_xsub
from sjepa_fast.runtime.dist import World
from sjepa_fast.runtime.schedule import Schedule
from sjepa_fast.step import TrainStep

RATE, MOMENTUM = 1e-3, 0.9999

pytestmark = pytest.mark.benchmark(group="sjepa step")


@pytest.fixture(scope="module")
def config(device: torch.device) -> TrainConfig:
    """The paper's preset: 2 clips x 2 bodies on a CPU, 128 x 2 on a GPU."""
    preset = sjepa_ntu60_xsub()
    clips = 128 if device.type == "cuda" else 2
    return TrainConfig(data=preset.data, optim=OptimConfig(batch_size=clips))


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


def test_reference_fp32(
    timed: Timed,
    config: TrainConfig,
    clips: ResidentClips,
    batch_ids: torch.Tensor,
    device: torch.device,
) -> None:
    """Rung A: fp32, materialised attention, loops over tensors, a host sync in every step.

    The crop is made outside the timed region, so the row does not carry its data path.
    """
    x_BMTVC = clips.eval_crop(batch_ids, config.data)
    step = ReferenceStep(batch_clips=len(batch_ids), bodies=config.data.bodies, device=device)
    timed(
        lambda: step.step(x_BMTVC, RATE, MOMENTUM),
        dtype=torch.float32,
        row="reference_fp32",
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
    """The library's step, with crop, view, mask, clipping, AdamW, EMA and centre in the time."""
    model = build_model(config, clips, batch_ids, device)
    schedule = Schedule(
        torch.full((10_000,), RATE, device=device),
        torch.full((10_000,), MOMENTUM, dtype=torch.float64, device=device),
    )
    config = dataclasses.replace(config, runtime=RuntimeConfig(compile=compiled))
    optimizer = build_optimizer(model, config)
    step = TrainStep(config, clips, model, optimizer, dtype, World(), schedule)
    timed(
        lambda: step(batch_ids),
        dtype=dtype,
        warmup=3,
        row=f"ours_{'compile' if compiled else 'eager'}",
        clips=len(batch_ids),
        bodies=config.data.bodies,
    )
