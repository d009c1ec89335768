"""`prepare merge`: stores into a pool, and what is refused before anything is written."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sjepa_fast import prepare as prepare_module
from sjepa_fast.data.store import open_store
from sjepa_fast.data.store_writer import StoreWriter
from sjepa_fast.errors import InputError
from sjepa_fast.joint_map import map_joints
from sjepa_fast.skeletons import KINECT20, NTU25
from tests.pools import CHOSEN, copied, merged, stores_of
from tests.tiny import call


def refused(out: Path, *words: str | Path) -> str:
    """The one line of a merge that ends with exit code 2 and writes nothing."""
    before = sorted(out.parent.iterdir())
    done = merged(out, *words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert sorted(out.parent.iterdir()) == before
    return done.stderr


def test_a_pool_has_the_clips_and_splits_of_all(sets: Path, pool: Path) -> None:
    found, own = open_store(pool), {p.name: open_store(p) for p in stores_of(sets)}
    assert found.layout == KINECT20 and len(found) == sum(map(len, own.values()))
    assert len(found.class_names) == 3 * 14 and found.class_names[14].startswith("kinect/")
    assert [(s.name, s.split, s.classes) for s in found.sets] == [
        ("ntu", "xview", 14),
        ("kinect", "xsub", 14),
        ("openni", "xsub", 14),
    ]
    assert [s.fingerprint for s in found.sets] == [s.fingerprint for s in own.values()]
    place = {str(name): i for i, name in enumerate(found.names)}
    for number, (name, store) in enumerate(own.items()):
        rows = map_joints(store.layout, KINECT20)
        for i in range(0, len(store), 11):
            row = place[f"{name}/{store.names[i]}"]
            label = found.class_names[found.labels[row]]
            assert label == f"{name}/{store.class_names[store.labels[i]]}"
            assert found.sets_N is not None and found.sets_N[row] == number
            clip = np.stack([store.clip(i)[:, :, list(r)].mean(axis=2) for r in rows], axis=2)
            np.testing.assert_array_equal(found.clip(row), clip.astype(np.float32))
        for key, codes in store.splits.items():
            own_rows = np.array([place[f"{name}/{clip}"] for clip in store.names])
            pooled = found.splits[f"{name}-{key}"]
            assert (pooled[own_rows] == codes).all()
            assert np.delete(pooled, own_rows).sum() == 0
    assert set(found.splits) == {"train"} | {
        f"{name}-{key}" for name, store in own.items() for key in store.splits
    }


def test_nothing_that_a_set_tests_on_trains(pool: Path) -> None:
    found = open_store(pool)
    codes = [found.splits[f"{s.name}-{s.split}"] for s in found.sets]
    assert (found.splits["train"] == np.max(codes, axis=0)).all()
    tested = np.any([c == 2 for c in codes], axis=0)
    assert tested.any() and not (found.splits["train"][tested] == 1).any()
    # Not by its neighbour's split either: ntu trains on cameras, the others on subjects.
    assert (found.splits["train"] == 1).sum() == sum((c == 1).sum() for c in codes)


def test_every_first_part_has_all_sets_in_proportion(pool: Path) -> None:
    found = open_store(pool)
    number = found.sets_N
    assert number is not None
    whole = np.bincount(number)
    for part in (50, 100, 200):
        share = np.bincount(number[:part], minlength=3)
        np.testing.assert_allclose(share, part * whole / whole.sum(), atol=1.5)


def test_what_is_said(sets: Path) -> None:
    said = merged(sets / "none", *stores_of(sets), "--layout", "kinect20", "--dry-run").stdout
    assert "ntu: ntu25, split xsub" in said and "bodies span 1." in said
    lacks = "note: openni lacks joints of kinect20: hip_center = hip_left + hip_right, "
    assert lacks in said and "wrist_left = hand_left" in said
    assert "note: frame rates of ntu, kinect, openni are taken to be alike" in said
    assert "dry run, nothing written" in said and not (sets / "none").exists()


def test_equal_joints_need_no_layout(sets: Path, tmp_path: Path) -> None:
    both = [sets / "ntu", copied(open_store(sets / "ntu"), tmp_path / "other")]
    assert merged(tmp_path / "pool", *both).returncode == 0
    found = open_store(tmp_path / "pool")
    assert found.layout == NTU25 and found.sets[1].split == "xsub", "of xsub and xview"


def test_a_stopped_merge_goes_on(
    sets: Path, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*stores_of(sets), "--layout", "kinect20", "--split", *CHOSEN]
    add, count = StoreWriter.add, 0

    def stopping(*arguments: object) -> None:
        nonlocal count
        count += 1
        if count == 100:
            raise KeyboardInterrupt
        add(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(StoreWriter, "add", stopping)
    assert merged(tmp_path / "pool", *words).returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == [".pool.partial"]
    monkeypatch.setattr(StoreWriter, "add", add)
    done = merged(tmp_path / "pool", *words)
    assert "pool: resuming after 99 of " in done.stdout
    assert open_store(tmp_path / "pool").fingerprint == open_store(pool).fingerprint


def test_rates_are_brought_to_one_by_a_flag(sets: Path, tmp_path: Path) -> None:
    source = open_store(sets / "ntu")
    slow = copied(source, tmp_path / "slow", change=lambda x: x[:, ::2], fps=15.0)
    fast = copied(source, tmp_path / "fast", fps=30.0)
    assert open_store(slow).fps == 15
    said = refused(tmp_path / "pool", slow, fast)
    assert "fps: slow 15, fast 30 frames per second" in said and "--resample 30" in said
    assert merged(tmp_path / "pool", slow, fast, "--resample", "15").returncode == 0
    found = open_store(tmp_path / "pool")
    assert found.fps == 15
    place = {str(name): i for i, name in enumerate(found.names)}
    for name in source.names[:5]:
        # Every other frame of the fast one is one of the slow one's.
        one, other = (found.clip(place[f"{of}/{name}"]) for of in ("slow", "fast"))
        length = min(one.shape[1], other.shape[1])
        assert abs(one.shape[1] - other.shape[1]) <= 1
        np.testing.assert_allclose(one[:, :length], other[:, :length], atol=1e-6)
    # A rate that the store does not know is said by a flag, and one that it knows is replaced.
    said = refused(
        tmp_path / "x", sets / "kinect", fast, "--layout", "kinect20", "--fps", "kinect=20"
    )
    assert "kinect 20, fast 30" in said
    done = merged(tmp_path / "y", slow, fast, "--fps", "slow=30")
    assert done.returncode == 0 and open_store(tmp_path / "y").fps == 30


def mirrored(x: np.ndarray) -> np.ndarray:
    return x * np.array([-1, 1, 1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: 1000 * x, ["no metres", "divide millimetres by 1000", "prepare it again"]),
        (lambda x: x * [1, -1, -1], ["heads are towards -y", "(x, -y, -z)"]),
        (mirrored, ["left and right are swapped", "negate x"]),
    ],
    ids=["millimetres", "y-down", "mirrored"],
)
def test_coordinates_that_are_others(
    sets: Path, tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], words: list[str]
) -> None:
    odd = copied(open_store(sets / "ntu"), tmp_path / "odd", change=change)
    said = refused(tmp_path / "pool", sets / "ntu", odd)
    assert said.startswith("stores: ") and all(word in said for word in [str(odd), *words])


def test_what_cannot_be_pooled(sets: Path, pool: Path, tmp_path: Path) -> None:
    ntu, kinect, out = sets / "ntu", sets / "kinect", tmp_path / "pool"
    twin = copied(open_store(kinect), tmp_path / "twin", layout=KINECT20, name="ntu")
    names = tuple(f"j{joint}" for joint in range(25))
    unknown = dataclasses.replace(NTU25, name="odd", joints=names)
    with StoreWriter(tmp_path / "odd", "odd", unknown, ("a",)) as writer:
        writer.add("c", open_store(ntu).clip(0), 0, {})
        writer.finish({"xsub": np.ones(1, np.int8)})
    flat = copied(open_store(ntu), tmp_path / "flat", change=lambda x: x * [1, 1, 0])
    blank = copied(open_store(ntu), tmp_path / "two words")
    for words, parts in (
        (
            (kinect, tmp_path / "odd", "--layout", "kinect20"),
            ["layout: hip_center of kinect20 has no counterpart", "body part of odd"],
        ),
        ((ntu,), ["stores: 1 given", "two or more"]),
        ((ntu, kinect), ["layout: not given", "ntu ntu25, kinect kinect20", "--layout NAME"]),
        ((ntu, twin, "--layout", "kinect20"), ["both called ntu", "leave one out"]),
        ((ntu, pool, "--layout", "kinect20"), ["is a pool", "name the stores"]),
        ((ntu, flat), ["flat in a plane, others in space", "separately"]),
        ((ntu, blank), ["two words", "letters, digits"]),
        ((ntu, kinect, "--layout", "kinect21"), ["layout: kinect21", "kinect20"]),
        ((ntu, sets / "absent"), ["data.root", "has no store"]),
        ((ntu, flat, "--split", "ntu=xset"), ["split: ntu=xset", "xsub", "xview"]),
        ((ntu, flat, "--split", "nut=xsub"), ["split: nut=xsub", "the pool has ntu, flat"]),
        ((ntu, flat, "--split", "xsub"), ["split: xsub", "SET=VALUE"]),
        ((ntu, flat, "--split", "ntu=xsub", "ntu=xview"), ["ntu has a value already"]),
        ((ntu, flat, "--fps", "ntu=fast"), ["fps: ntu=fast", "frames per second"]),
        ((ntu, flat, "--fps", "ntu=0"), ["fps: ntu=0"]),
        ((ntu, flat, "--fps", "ntu=nan"), ["fps: ntu=nan"]),
        ((ntu, flat, "--resample=-1"), ["resample: -1"]),
    ):
        said = refused(out, *words)
        assert all(part in said for part in parts), (words, said)
    missing = call(prepare_module.main, "merge", ntu, kinect)
    assert missing.returncode == 2 and "--out: missing" in missing.stderr


def test_a_set_without_the_split_or_with_an_empty_class(sets: Path, tmp_path: Path) -> None:
    source = open_store(sets / "ntu")
    train = source.ids("xsub", "train")
    ids = [int(i) for i in range(len(source)) if not (i in train and source.labels[i] < 7)]
    part = copied(source, tmp_path / "part", ids=ids)
    said = refused(tmp_path / "pool", sets / "ntu", part)
    first = ", ".join(source.class_names[:5])
    assert f"split: part xsub has no training clip of {first} and 2 more" in said
    assert "--split part=NAME" in said and "--allow-empty" in said
    assert merged(tmp_path / "pool", sets / "ntu", part, "--allow-empty").returncode == 0
    with StoreWriter(tmp_path / "none", "none", NTU25, source.class_names) as writer:
        for name in "cd":
            writer.add(name, source.clip(0), 0, {})
        folds = {"fold0": [1, 2], "fold1": [2, 1], "fold2": [2, 2]}
        writer.finish({key: np.array(codes, np.int8) for key, codes in folds.items()})
    none = tmp_path / "none"
    said = refused(tmp_path / "b", sets / "ntu", none)
    assert "split: not given for none, which has fold0, fold1, fold2; add --split none=NAME" in said
    said = refused(tmp_path / "b", sets / "ntu", none, "--split", "none=fold2")
    assert "fold2 has no training clip" in said


def test_a_damaged_list_of_sets_is_refused(pool: Path, tmp_path: Path) -> None:
    shutil.copytree(pool, tmp_path / "pool")
    path = tmp_path / "pool" / "store.json"
    whole = json.loads(path.read_text())
    whole.pop("checksum")
    good = whole["sets"]
    for sets, said in (
        (good[:2], "sets do not have the classes"),
        ([*good, good[0]], "sets is not a list"),
        ([{**good[0], "classes": -1}], "sets is not a list"),
        ([{**good[0], "split": "../x"}], "sets is not a list"),
        ([{"name": "ntu"}], "sets is not a list"),
        (7, "sets is not a list"),
    ):
        path.write_text(json.dumps({**whole, "sets": sets}))
        with pytest.raises(InputError, match=said):
            open_store(tmp_path / "pool")
    path.write_text(json.dumps({**whole, "sets": [{**good[0], "name": "other"}, *good[1:]]}))
    with pytest.raises(InputError, match="a clip of 'ntu', which is none of the sets"):
        open_store(tmp_path / "pool")
    for fps in (-1, "30", True, 1e9):
        path.write_text(json.dumps({**whole, "fps": fps}))
        with pytest.raises(InputError, match="fps is not a number"):
            open_store(tmp_path / "pool")
    path.write_text(json.dumps(whole))
    assert open_store(tmp_path / "pool").sets == open_store(pool).sets


def test_real_sets_in_one_pool(data_root: Path, tmp_path: Path) -> None:
    trained = {"nucla": 1020, "msr_action3d": 284, "utkinect": 100, "florence3d": 109}
    trained |= {"ui_prmd": 500, "bandai_namco": 1856, "sbu": 227}
    folders = {"sbu": "sbu_interaction"}
    for name in trained:
        raw = data_root / folders.get(name, name)
        if not raw.is_dir():
            pytest.skip(f"no {name} in {data_root}")
        done = call(prepare_module.main, name, "--raw", raw, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
    words = [*(tmp_path / name for name in trained), "--layout", "kinect20"]
    said = refused(tmp_path / "pool", *words, "--split", "sbu=fold0")
    assert "fps: ui_prmd 15, bandai_namco 30 frames per second" in said
    words += ["--split", "sbu=fold0", "--resample", "30"]
    done = merged(tmp_path / "pool", *words)
    assert done.returncode == 0, done.stderr
    found = open_store(tmp_path / "pool")
    assert found.max_bodies == 2 and len(found) == 6639
    assert found.sets_N is not None
    counts = np.bincount(found.sets_N[found.ids("train", "train")])
    assert counts.tolist() == list(trained.values())
    assert "trust" not in done.stdout, "units, axes and sides of all are told by their bodies"
