"""The data backends: from a store on disk to the tokens of a batch, NTU shape.

`pytest benchmarks/bench_backends.py --benchmark-only`. A row is one batch: taking the next ids
(for `disk` and `dali`: with the rows brought to the window) and crops, views and tokens of the
128 clips. `clips` over the median time and over `cores` is clips per second per core; rows
with a worker have its core as well. Each row first compares its tokens with the resident store's.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from benchmarks.conftest import Timed
from sjepa_fast.config.schema import OptimConfig, TrainConfig, replace
from sjepa_fast.data.clips import ResidentClips, augmentation
from sjepa_fast.data.feed import open_clips, open_feed
from sjepa_fast.data.store import Store
from sjepa_fast.data.synthetic import write_synthetic_store
from sjepa_fast.runtime.dist import World

BATCH = 128
CONFIG = TrainConfig(optim=OptimConfig(batch_size=BATCH))
DALI = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")
NEEDS_DALI = [
    pytest.mark.skipif(not DALI, reason="NVIDIA DALI is not installed"),
    # DALI leaves sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.benchmark(group="data backends, 128 clips, float32"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Synthetic people, of whom a fifth of the clips has two; more clips than two batches."""
    root = tmp_path_factory.mktemp("store") / "synthetic"
    return write_synthetic_store(root, subjects=6, repetitions=2)


@pytest.mark.parametrize(
    ("backend", "workers"),
    [("resident", 0), ("disk", 0), ("disk", 1)]
    + [pytest.param("dali", workers, marks=NEEDS_DALI) for workers in (0, 1)],
)
def test_backend(
    timed: Timed, store: Store, device: torch.device, backend: str, workers: int
) -> None:
    config = replace(CONFIG, data={"backend": backend, "workers": workers})
    seed, step = (torch.tensor(0, device=device) for _ in range(2))
    whole = open_clips(store, CONFIG.data, device)
    clips, part = open_clips(store, config.data, device), np.arange(len(store))

    def tokens(of: ResidentClips, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return of.train_tokens(ids, seed, step, augmentation(config, of.max_bodies))

    with open_feed(clips, part, config, World(), range(1_000_000)) as (fed, feed):
        ids = next(feed)
        for got, true in zip(tokens(fed, ids), tokens(whole, ids), strict=True):
            assert got.shape == (2 * BATCH, 750, 12) and torch.equal(got, true)
        facts = {"row": backend, "clips": BATCH, "workers": workers, "cores": 1 + workers}
        settings = {"dtype": torch.float32, "rounds": 15, "warmup": 5}
        timed(lambda: tokens(fed, next(feed)), **settings, **facts)
