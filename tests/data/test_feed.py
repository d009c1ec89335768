"""The backends hand the step equal batches: those of the resident store, bit for bit."""

import importlib.util
import multiprocessing
import os
import pickle
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sjepa_fast.config.schema import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    ViewConfig,
    replace,
)
from sjepa_fast.data.clips import ResidentClips, augmentation
from sjepa_fast.data.feed import check_backend, open_clips, open_feed
from sjepa_fast.data.store import Store, open_store
from sjepa_fast.data.store_writer import StoreWriter
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.recipes import Views
from sjepa_fast.objectives.objective import make_step_input
from sjepa_fast.runtime.dist import World
from sjepa_fast.skeletons import NTU25

CPU = torch.device("cpu")
DALI = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")
BACKENDS = [
    "disk",
    pytest.param(
        "dali",
        marks=[
            pytest.mark.skipif(not DALI, reason="NVIDIA DALI is not installed"),
            # DALI leaves sockets to the garbage collector.
            pytest.mark.filterwarnings("ignore::ResourceWarning"),
            pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
        ],
    ),
]
CONFIG = TrainConfig(
    seed=3,
    data=DataConfig(frames=8, crop_min_frames=4, workers=0, prefetch=2),
    model=ModelConfig(segment_length=2, width=32, depth=1, heads=1, predictor_depth=1),
    view=ViewConfig(rotation=0.5, tilt=0.1, translation=0.1, flip=0.5),
    optim=OptimConfig(batch_size=8),
)
NORMAL = {"center": True, "align_spine": True, "align_yaw": True, "normalize_size": True}
INDEX = {"sampling": "index", "align_spine": True}
Batch = tuple[torch.Tensor, ...]


def write(path: Path, dtype: str, clips: int = 30) -> Store:
    rng = np.random.default_rng(0)
    with StoreWriter(path, "small", NTU25, ("a",), dtype=dtype) as writer:
        for i in range(clips):
            shape = (1 + i % 3 // 2, int(rng.integers(3, 40)), 25, 3)
            writer.add(f"clip{i}", rng.standard_normal(shape).astype(np.float32), 0, {})
        return writer.finish({"xsub": np.arange(clips, dtype=np.int8) % 5 // 4 + 1})


@pytest.fixture(scope="module", params=["float32", "float16"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write(tmp_path_factory.mktemp("stores") / request.param, request.param)


def opened(store: Store, config: TrainConfig) -> tuple[ResidentClips, np.ndarray]:
    clips, part = open_clips(store, config.data, CPU), store.ids("xsub", "train")
    return clips.split_bodies(part) if config.data.skip_empty_bodies else (clips, part)


def batches(
    store: Store, config: TrainConfig, steps: range, world: World | None = None
) -> Iterator[Batch]:
    """What the networks get at each step: ids, tokens of view and clip, kept and masked ids."""
    seed = torch.tensor(config.seed)
    with open_feed(*opened(store, config), config, world or World(), steps) as (clips, feed):
        for step, ids in zip(steps, feed, strict=True):
            got = make_step_input(clips, ids, seed, torch.tensor(step), config)
            yield (ids.clone(), got.view_BNP, got.clip_BNP, got.ids_keep_BK, got.ids_mask_BQ)


def using(backend: str, **data: object) -> TrainConfig:
    return replace(CONFIG, data={"backend": backend, **data})


def check_equal(ours: Iterator[Batch], theirs: Iterator[Batch]) -> None:
    count = 0
    for count, pair in enumerate(zip(ours, theirs, strict=True), 1):
        for got, expected in zip(*pair, strict=True):
            assert got.dtype == expected.dtype and torch.equal(got, expected), count
        assert pair[0][2].std() > 0.1
    assert count > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bodies", [False, True], ids=["clips", "bodies"])
@pytest.mark.parametrize("normal", [{}, NORMAL, INDEX], ids=["raw", "normalised", "index"])
def test_batches_equal_those_of_the_resident_store(
    store: Store, backend: str, bodies: bool, normal: dict[str, object]
) -> None:
    steps = range(7)  # More than two epochs.
    data = {"skip_empty_bodies": bodies, **normal}
    ours = batches(store, using(backend, **data), steps)
    check_equal(ours, batches(store, using("resident", **data), steps))


@pytest.mark.parametrize("backend", BACKENDS)
def test_workers_read_the_same_and_leave(store: Store, backend: str) -> None:
    config = using(backend, workers=2, skip_empty_bodies=True, **NORMAL)
    before = {child.pid for child in multiprocessing.active_children()}
    state = torch.get_rng_state()
    ours = batches(store, config, range(3, 12))
    first = next(ours)
    during = {child.pid for child in multiprocessing.active_children()}
    assert len(during - before) >= 2
    expected = batches(store, using("resident", skip_empty_bodies=True, **NORMAL), range(3, 12))
    check_equal(iter([first, next(ours)]), iter([next(expected), next(expected)]))
    ours.close()
    assert {child.pid for child in multiprocessing.active_children()} == before
    assert torch.equal(torch.get_rng_state(), state), "weights are drawn from this generator"


@pytest.mark.parametrize("backend", ["resident", *BACKENDS])
def test_a_resumed_run_and_a_share_get_the_batches_of_the_whole(store: Store, backend: str) -> None:
    whole = list(batches(store, using("resident"), range(7)))
    check_equal(batches(store, using(backend), range(4, 7)), iter(whole[4:]))
    shares = [batches(store, using(backend), range(7), World(rank, 2)) for rank in (0, 1)]
    joined = (
        tuple(torch.cat(parts) for parts in zip(*pair, strict=True))
        for pair in zip(*shares, strict=True)
    )
    check_equal(joined, iter(whole))


@pytest.mark.parametrize("backend", ["resident", *BACKENDS])
def test_clips_know_the_most_bodies_of_any_batch(store: Store, backend: str) -> None:
    """Counted batch by batch, over whole epochs, and the same for each process and each start."""
    config = replace(using(backend), optim={"batch_size": 4})
    clips, part = opened(store, config)
    epochs, per_epoch = 3, len(part) // 4
    for size in (1, 2):
        sums = []
        for epoch in range(epochs):
            order = np.random.Generator(np.random.Philox(key=[3, epoch])).permutation(part)
            shares = [order[i : i + 4 // size] for i in range(0, 4 * per_epoch, 4 // size)]
            sums += [int(store.bodies[ids].sum()) for ids in shares]
        assert len(set(sums)) > 1
        for rank in range(size):
            for start in (0, 2 * per_epoch + 1):
                steps = range(start, 2 * per_epoch + 2)
                with open_feed(clips, part, config, World(rank, size), steps) as (fed, _):
                    assert fed.most_bodies == max(sums)
                    assert fed.distinct_sequences(4) == min(8, 1 + max(sums))


def test_bodies_are_not_counted_where_it_is_no_use(store: Store) -> None:
    for config in (
        using("resident", skip_empty_bodies=True),
        replace(using("resident"), objective={"kind": "mamp", "target_norm": "patch"}),
    ):
        with open_feed(*opened(store, config), config, World(), range(4)) as (fed, _):
            assert fed.most_bodies == 0 and fed.distinct_sequences(8) == 8 * fed.max_bodies


def test_ids_are_the_epochs_permutation_cut_into_batches(store: Store) -> None:
    part = store.ids("xsub", "train")
    got = [batch[0].numpy() for batch in batches(store, using("disk"), range(7))]
    per_epoch = len(part) // 8
    for step, ids in enumerate(got):
        epoch, place = divmod(step, per_epoch)
        shuffled = np.random.Generator(np.random.Philox(key=[3, epoch])).permutation(part)
        assert (ids == shuffled[8 * place : 8 * place + 8]).all()


@pytest.mark.parametrize("bodies", [False, True], ids=["clips", "bodies"])
def test_evaluation_crops_are_those_of_the_resident_store(store: Store, bodies: bool) -> None:
    ours, ids = opened(store, using("disk", skip_empty_bodies=bodies, **NORMAL))
    theirs, _ = opened(store, using("resident", skip_empty_bodies=bodies, **NORMAL))
    wanted = torch.from_numpy(ids[::-1][:9].copy()).repeat(2)
    held = ours.with_rows(wanted).joints_RVC
    assert len(held) == (theirs.frames_N * theirs.bodies_N)[wanted[:9]].sum()
    crop = ours.eval_crop(wanted, CONFIG.data)
    assert crop.std() > 0.1 and torch.equal(crop, theirs.eval_crop(wanted, CONFIG.data))
    keys = torch.tensor(1), torch.tensor(2)
    told = augmentation(CONFIG, ours.max_bodies, crop=Views(), view=Views())
    views = [clips.train_tokens(wanted, *keys, told)[0] for clips in (ours, theirs)]
    assert views[0].std() > 0.1 and torch.equal(*views)


def test_only_the_rows_of_the_batches_are_read_and_held(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    real = os.preadv

    def counted(file: int, buffers: list[memoryview], offset: int) -> int:
        read.append(real(file, buffers, offset))
        return read[-1]

    monkeypatch.setattr(os, "preadv", counted)
    clips, part = opened(store, using("disk"))
    assert clips.joints_RVC.numel() == 0 and read == []
    row = 25 * 3 * store.joints.itemsize
    with open_feed(clips, part, using("disk"), World(), range(4)) as (window, feed):
        for ids in feed:
            rows = (store.frames * store.bodies)[ids.numpy()].sum()
            assert sum(read) == rows * row
            read.clear()
        longest = np.sort(store.frames * store.bodies)[-8:].sum()
        assert len(window.joints_RVC) == longest < len(store.joints)
    assert clips.reader is not None
    assert len(pickle.dumps(clips.reader)) < store.joints.nbytes / 10


def test_nothing_in_taking_a_batch_waits_for_the_device(store: Store) -> None:
    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    config = using("disk", workers=1)
    with open_feed(*opened(store, config), config, World(), range(4)) as (_, feed):
        next(feed)
        with Watch():
            next(feed)
    assert seen.count("copy_") == 1 and seen.count("index_copy_") == 1
    # What reads a value of the device on the host, or makes a tensor of a number of the host.
    waits = {"_local_scalar_dense", "nonzero", "lift_fresh", "is_nonzero", "masked_select", "index"}
    assert not waits & set(seen), seen


def test_a_removed_store_is_read_to_the_end(tmp_path: Path) -> None:
    config = using("disk", workers=1)
    store = write(tmp_path / "store", "float32")
    expected = list(batches(store, using("resident"), range(20)))
    ours = batches(store, config, range(20))
    begun = [next(ours)]
    shutil.rmtree(tmp_path / "store")
    check_equal(iter([*begun, *ours]), iter(expected))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_shortened_store_is_one_clear_error(tmp_path: Path, backend: str, workers: int) -> None:
    store = write(tmp_path / "store", "float32")
    ours = batches(store, using(backend, workers=workers, prefetch=1), range(20))
    next(ours)
    os.truncate(tmp_path / "store" / "joints.npy", 4096)
    with pytest.raises(
        OSError, match=r"joints\.npy ends before byte \d+: .*--resume auto"
    ) as raised:
        list(ours)
    assert "\n" not in str(raised.value)


def test_a_killed_worker_is_one_clear_error(store: Store) -> None:
    before = {child.pid for child in multiprocessing.active_children()}
    ours = batches(store, using("disk", workers=1), range(100))
    next(ours)
    (worker,) = [c for c in multiprocessing.active_children() if c.pid not in before]
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(ChildProcessError, match=r"data worker.*lower data\.workers") as raised:
        list(ours)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_workers_are_spawned_where_cuda_is_in_use(
    store: Store, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    ours = batches(store, using(backend, workers=1), range(3))
    check_equal(ours, batches(store, using("resident"), range(3)))


def test_dali_is_asked_for_by_name_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for cuda, package in ((None, "120"), ("12.8", "120"), ("13.0", "130")):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        with pytest.raises(InputError, match=f"pip install nvidia-dali-cuda{package} "):
            check_backend(using("dali").data)


def test_too_many_bodies_are_refused_by_every_backend(store: Store) -> None:
    for backend in ("resident", "disk"):
        with pytest.raises(InputError, match=r"use --data\.bodies 2"):
            open_clips(open_store(store.root), using(backend, bodies=1).data, CPU)
