"""Losses of fifty steps, held fast: a refactor that changes them must say so.

Fixed seed, float32, one thread, a tiny model on synthetic skeletons. Another order of sums moves
them by about 1e-7 (plain PyTorch in place of the C++ operations); the tolerance of 1e-4 leaves room
for other CPUs, and any change of method shows far above it. To record anew after a change that is
meant: print `trace(kind)` and say in the commit why.
"""

import dataclasses
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from sjepa_fast.build import OBJECTIVES, build_model, build_optimizer
from sjepa_fast.config.presets import PRESETS, preset
from sjepa_fast.config.schema import TrainConfig, replace
from sjepa_fast.data.clips import load_resident
from sjepa_fast.data.store import Store
from sjepa_fast.data.synthetic import write_synthetic_store
from sjepa_fast.runtime.dist import World
from sjepa_fast.runtime.schedule import tabulate
from sjepa_fast.training.step import TrainStep
from tests.tiny import AIMS

STEPS = 50
# Mean loss of the first five steps, of steps 21 to 25, and of the last five.
GOLDEN = {
    "sjepa": (17.9253344, 3.7220857, 2.2615777),
    "skeleton2vec": (1.0277233, 0.7398071, 0.6202355),
    "mamp": (1.5894171, 0.5352569, 0.5280666),
    "skeletonmae": (1.646568, 0.5040283, 0.380249),
    "multiview": (0.7579517, 0.2118763, 0.1719774),
}


def base_of(kind: str) -> TrainConfig:
    """The objective's small preset; S-JEPA's with its target where it has none."""
    if f"{kind}-nucla" in PRESETS:
        return preset(f"{kind}-nucla")
    return replace(preset("sjepa-nucla"), objective=AIMS[kind])


def config_of(kind: str) -> TrainConfig:
    schedule = "linear" if kind == "skeleton2vec" else "cosine"
    return replace(
        base_of(kind),
        data={"frames": 16, "bodies": 2, "split": "xsub", "whiten": 0.0},
        model={"width": 32, "heads": 1, "depth": 2, "predictor_depth": 1},
        view={"form": "body", "rotation": 0.3, "tilt": 0.0, "translation": 0.1, "flip": 0.5},
        mask={"tube_length": 2, "ratio": 0.9},
        objective={"target_layers": 2, "ema_start": 0.99, "ema_schedule": schedule},
        optim={"batch_size": 8, "length": STEPS, "warmup": 10, "lr": 1e-3, "lr_end": 1e-4},
    )


@cache
def store() -> Store:
    with TemporaryDirectory() as folder:
        return write_synthetic_store(Path(folder) / "synthetic", subjects=2, repetitions=1)


def trace(kind: str) -> list[float]:
    config, data = config_of(kind), store()
    ids = torch.from_numpy(data.ids("xsub", "train"))
    batches = [ids[torch.arange(8 * i, 8 * i + 8) % len(ids)] for i in range(STEPS)]
    clips = load_resident(data, config.data, torch.device("cpu"))
    # As in a run: the targets of absent bodies are computed once.
    most = max(int(clips.bodies_N[batch].sum()) for batch in batches)
    clips = dataclasses.replace(clips, most_bodies=most)
    assert clips.distinct_sequences(8) < 16
    model = build_model(config, clips, ids, torch.device("cpu"))
    schedule = tabulate(config, STEPS, config.optim.warmup, torch.device("cpu"))
    optimizer = build_optimizer(model, config)
    step = TrainStep(config, clips, model, optimizer, torch.float32, World(), schedule)
    losses = [step(batch).loss for batch in batches]
    values = torch.stack(losses).tolist()
    return [sum(values[k : k + 5]) / 5 for k in (0, 20, 45)]


def test_every_objective_is_recorded() -> None:
    assert set(GOLDEN) == set(OBJECTIVES)


@pytest.mark.parametrize("kind", GOLDEN)
def test_fifty_steps_have_the_recorded_losses(kind: str) -> None:
    assert trace(kind) == pytest.approx(GOLDEN[kind], rel=1e-4)
