"""The data path: a batch of crops and views from the family's feeder, and from resident clips.

`pytest benchmarks/bench_data.py --benchmark-only`. On one core each; on a GPU ours runs there.
`clips` of a row over its median time are its clips per second, on one core.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from benchmarks.conftest import Timed
from benchmarks.reference.feeder import feeding_loader, padded_clips
from benchmarks.steps import ntu_like_clips
from sjepa_fast.config.schema import OptimConfig, TrainConfig
from sjepa_fast.data.clips import ResidentClips, augmentation

BATCH = 128
CONFIG = TrainConfig(optim=OptimConfig(batch_size=BATCH))

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.benchmark(group="data path, 128 clips, one core"),
]


@pytest.fixture(scope="module")
def clips(device: torch.device) -> ResidentClips:
    return ntu_like_clips(1024, device)


def test_feeder(timed: Timed, clips: ResidentClips) -> None:
    """One worker's loop: copy, length, crop, resize and view of each clip, then the collation."""
    padded = padded_clips(clips, torch.arange(2 * BATCH))
    loader = feeding_loader(padded, CONFIG, workers=0, pinned=False)

    fed = itertools.chain.from_iterable(itertools.repeat(loader))
    clip, view = next(fed)
    assert clip.shape == view.shape == (BATCH, 2, 120, 25, 3)
    timed(lambda: next(fed), dtype=torch.float32, row="feeder", clips=BATCH)


def test_resident(timed: Timed, clips: ResidentClips, device: torch.device) -> None:
    """Ours: crops, views and their tokens of a whole batch at once."""
    seed, step = (torch.tensor(0, device=device) for _ in range(2))
    ids = torch.randperm(1024, device=device)[:BATCH]

    def tokens() -> tuple[torch.Tensor, torch.Tensor]:
        return clips.train_tokens(ids, seed, step, augmentation(CONFIG, clips.max_bodies))

    view, clip = tokens()
    assert clip.shape == view.shape == (2 * BATCH, 750, 12)
    timed(tokens, dtype=torch.float32, warmup=3, row="resident", clips=BATCH)
