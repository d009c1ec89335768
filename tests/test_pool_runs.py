"""Runs on a pool of stores: how its sets are drawn, and scores on each of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sjepa_fast.config.files import parse_train
from sjepa_fast.config.presets import preset
from sjepa_fast.data.clip_table import NO_LABEL
from sjepa_fast.data.feed import batch_order, open_clips, open_feed
from sjepa_fast.data.store import open_store
from sjepa_fast.data.store_writer import StoreWriter
from sjepa_fast.evaluate import main as evaluate
from sjepa_fast.runtime.dist import World
from sjepa_fast.skeletons import KINECT20
from sjepa_fast.train import main as train_main
from tests.pools import copied, merged
from tests.tiny import CPU, SMALL, call, flags, metrics, torchrun, weights


def words_of(pool: Path, run: Path, *more: str) -> list[str]:
    """Arguments for a short run of `mamp-pool`; flags in `more` come last and win."""
    start = ["mamp-pool", "--data.root", str(pool), "--run", str(run)]
    short = {**SMALL, "data.crop-min-frames": 4, "optim.length": 12, "checkpoint.every": 5}
    return [*start, *flags(short), *more]


@pytest.fixture(scope="module")
def run(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on the pool, with the clips on the device."""
    folder = tmp_path_factory.mktemp("runs") / "resident"
    done = call(train_main, *words_of(pool, folder))
    assert done.returncode == 0, done.stderr
    return folder


def test_presets_are_the_small_recipe_on_a_pool() -> None:
    for method in ("mamp", "sjepa"):
        config, small = preset(f"{method}-pool"), preset(f"{method}-nucla")
        assert config.objective == small.objective and config.run.name == f"{method}-pool"
        assert (config.data.split, config.data.set_power, config.data.bodies) == ("train", 0.5, 2)
        assert config.data.skip_empty_bodies and config.model.layer_scale > 0
        assert config.optim.unit == "steps" and config.optim.length > small.optim.length


def test_sets_are_drawn_by_the_power_of_their_size(pool: Path) -> None:
    store = open_store(pool)
    for power, kept in ((1.0, False), (0.5, True), (0.0, True)):
        config = parse_train(words_of(pool, Path("r"), f"--data.set-power={power}"))
        clips, part = open_clips(store, config.data, CPU), store.ids("train", "train")
        clips, part = clips.split_bodies(part)
        order = batch_order(clips, part, config, World())
        assert (order.mixture is not None) == kept
        assert clips.sets_N is not None
        number = clips.sets_N
        sizes = np.bincount(number[part])
        drawn = np.bincount(number[order.epoch_ids(3)])
        wanted = len(part) * sizes**power / (sizes**power).sum()
        np.testing.assert_allclose(drawn, wanted, atol=1)


@pytest.mark.parametrize("backend", ["disk", "resident"])
@pytest.mark.parametrize("size", [1, 2])
def test_streaming_and_processes_draw_the_same(pool: Path, backend: str, size: int) -> None:
    """Also where one batch has a sample twice, and the window on the device must hold both."""
    store = open_store(pool)
    words = ["--data.set-power=0", "--optim.batch-size=96", "--data.workers=0"]
    config = parse_train(words_of(pool, Path("r"), *words, f"--data.backend={backend}"))
    alone = parse_train(words_of(pool, Path("r"), *words))

    def fed(config: object, world: World, steps: range) -> list[tuple[list[int], torch.Tensor]]:
        part = store.ids("train", "train")
        opened = open_clips(store, config.data, CPU).split_bodies(part)  # type: ignore[attr-defined]
        with open_feed(*opened, config, world, steps) as (clips, batches):  # type: ignore[arg-type]
            start = torch.zeros(96 // world.size, dtype=torch.int64)
            length = torch.full_like(start, 3)
            return [
                (ids.tolist(), clips.crop_resize(ids, start, length, 4).clone())
                for ids in (next(batches) for _ in steps)
            ]

    whole = fed(alone, World(), range(9))
    assert any(len(set(ids)) < len(ids) for ids, _ in whole), "the small set comes round"
    shares = [fed(config, World(rank=r, size=size), range(4, 9)) for r in range(size)]
    for step in range(5):
        ids, crops = whole[4 + step]
        assert [i for share in shares for i in share[step][0]] == ids
        assert torch.equal(torch.cat([share[step][1] for share in shares]), crops)


def test_a_run_on_a_pool_says_what_it_saw(sets: Path, pool: Path, run: Path) -> None:
    record = json.loads((run / "data.json").read_text())
    assert record["split"] == "train"
    assert record["sets"] == {"ntu": "xview", "kinect": "xsub", "openni": "xsub"}
    names = (run / "train_ids.txt").read_text().splitlines()
    store = open_store(sets / "ntu")
    tested = {f"ntu/{store.names[i]}" for i in store.ids("xview", "test")}
    assert len(names) == (open_store(pool).splits["train"] == 1).sum() and not tested & set(names)
    assert (run / "results" / "knn-before-after.json").exists(), "its own test parts are at hand"


def test_streaming_ends_with_the_same_weights_and_resumes(
    pool: Path, run: Path, tmp_path: Path
) -> None:
    words = words_of(pool, tmp_path / "run", "--data.backend=disk", "--data.workers=1")
    assert call(train_main, *words).returncode == 0
    ours, theirs = weights(tmp_path / "run"), weights(run)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [row["loss"] for row in metrics(tmp_path / "run") if "loss" in row] == [
        row["loss"] for row in metrics(run) if "loss" in row
    ]
    for folder in (tmp_path / "run" / "checkpoints").glob("step-*12"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    assert call(train_main, *words, "--resume", "auto").returncode == 0
    again = weights(tmp_path / "run")
    assert all(torch.equal(again[name], theirs[name]) for name in theirs)
    done = call(train_main, *words, "--resume", "auto", "--data.set-power", "0.3")
    assert done.returncode == 2 and "data.set_power: 0.3, but the run began with 0.5" in done.stderr


def test_two_processes_train_on_a_pool(pool: Path, run: Path, tmp_path: Path) -> None:
    words = words_of(pool, tmp_path / "run", "--runtime.dtype=float32")
    done = torchrun(2, "-m", "--", "sjepa_fast.train", *words)
    assert done.returncode == 0, done.stderr
    alone = words_of(pool, tmp_path / "alone", "--runtime.dtype=float32")
    assert call(train_main, *alone).returncode == 0
    ours, theirs = weights(tmp_path / "run"), weights(tmp_path / "alone")
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "split", "joints"),
    [("ntu", "xview", 25), ("kinect", "xsub", 20), ("openni", "xsub", 15)],
)
def test_a_set_of_the_pool_needs_no_further_flag(
    sets: Path, run: Path, name: str, split: str, joints: int
) -> None:
    done = call(evaluate, "knn", run, "--data.root", sets / name)
    assert done.returncode == 0, done.stderr
    (path,) = (run / "results").glob(f"knn-target-full-{name}-*.json")
    result = json.loads(path.read_text())
    assert (result["store"], result["split"]) == (name, split)
    assert result["test_clips_seen_in_training"] == 0
    assert set(result["beside"]) == {"raw", "random"}
    mapped = result["joint_map"]
    assert mapped is None if joints == 20 else len(mapped) == joints


def test_a_set_that_was_not_in_the_pool(sets: Path, run: Path, tmp_path: Path) -> None:
    other = copied(open_store(sets / "kinect"), tmp_path / "other", layout=KINECT20)
    short = ["--no-baselines"]
    done = call(evaluate, "knn", run, "--data.root", other, *short)
    assert done.returncode == 0 and "knn-target-full-other-xsub" in done.stdout, done.stderr
    # By another split test clips have trained, and that is said.
    done = call(evaluate, "knn", run, "--data.root", sets / "ntu", "--data.split=xsub", *short)
    assert done.returncode == 0 and "of the test clips were in the pre-training" in done.stdout
    done = call(evaluate, "knn", run, *short)
    assert done.returncode == 0 and "knn-target-full-pool-train" in done.stdout
    source = open_store(sets / "kinect")
    with StoreWriter(tmp_path / "folds", "folds", KINECT20, source.class_names) as writer:
        for i in range(8):
            writer.add(str(i), source.clip(i), int(source.labels[i]), {})
        folds = {f"fold{k}": (np.arange(8) % 2 == k).astype(np.int8) + 1 for k in range(2)}
        writer.finish(folds)
    done = call(evaluate, "knn", run, "--data.root", tmp_path / "folds", *short)
    assert done.returncode == 2
    assert "data.split: not given, and folds has fold0, fold1; add --data.split" in done.stderr


def test_a_set_without_labels_is_drawn_by_its_own_size(sets: Path, tmp_path: Path) -> None:
    """Its clips are of no class, so it is known by their names."""
    source = open_store(sets / "ntu")
    bare = copied(source, tmp_path / "bare", ids=range(40), labelled=False)
    done = merged(tmp_path / "pool", sets / "ntu", bare, "--allow-empty")
    assert done.returncode == 0, done.stderr
    pool = open_store(tmp_path / "pool")
    names = np.char.startswith(pool.names, "bare/")
    assert (pool.labels[names] == NO_LABEL).all() and (pool.labels[~names] != NO_LABEL).all()
    assert [found.classes for found in pool.sets] == [len(source.class_names), 0]
    config = parse_train(words_of(tmp_path / "pool", tmp_path / "run"))
    clips, part = open_clips(pool, config.data, CPU).split_bodies(pool.ids("train", "train"))
    order = batch_order(clips, part, config, World())
    drawn = np.repeat(names, pool.bodies)[order.epoch_ids(0)]
    sizes = np.bincount(np.repeat(names, pool.bodies)[part])
    assert abs(drawn.sum() - len(part) * np.sqrt(sizes[1]) / np.sqrt(sizes).sum()) <= 1
    done = call(train_main, *words_of(tmp_path / "pool", tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "results" / "knn-before-after.json").exists(), "of the other set"


def test_what_a_run_on_a_pool_refuses(sets: Path, pool: Path, tmp_path: Path) -> None:
    for words, said in (
        (
            words_of(sets / "ntu", tmp_path / "r", "--data.split=xsub"),
            ["data.set_power: 0.5", "ntu"],
        ),
        (
            words_of(sets / "ntu", tmp_path / "r", "--data.set-power=1"),
            ["data.split: train", "xview"],
        ),
        (words_of(pool, tmp_path / "r", "--data.set-power=1.5"), ["data.set_power: 1.5"]),
        (words_of(pool, tmp_path / "r", "--optim.warmup=12"), ["optim.warmup: 12 of 12 steps"]),
        (words_of(pool, tmp_path / "r", "--data.bodies=1"), ["data.bodies: 1", "--data.bodies 2"]),
    ):
        done = call(train_main, *words)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert all(word in done.stderr for word in said), done.stderr
        assert not (tmp_path / "r").exists()
