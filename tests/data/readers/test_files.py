"""CTR-GCN `.npz`, pyskl `.pkl` and ragged `.npz`, on files written here in the exact format."""

import collections
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sjepa_fast.data.clip_table import MAX_CLASSES
from sjepa_fast.data.readers.ctrgcn_npz import open_ctrgcn
from sjepa_fast.data.readers.pyskl import load_restricted, open_pyskl
from sjepa_fast.data.readers.ragged_npz import SETS, open_ragged
from sjepa_fast.errors import InputError
from sjepa_fast.skeletons import COCO17, H36M17, KINECT20, NTU25

RNG = np.random.default_rng(0)


def write_ctrgcn(path: Path, drop: str = "") -> dict[str, np.ndarray]:
    x = np.zeros((4, 300, 150), dtype=np.float32)
    x[0, :50, :75] = RNG.normal(size=(50, 75))
    x[1, :80] = RNG.normal(size=(80, 150))
    x[2, :60, :75] = RNG.normal(size=(60, 75))
    x[2, :60, 75:] = x[2, :60, :75]
    y = np.eye(60)[[3, 59, 0, 7]]
    data = {"x_train": x[:3], "y_train": y[:3], "x_test": x[3:], "y_test": y[3:]}
    np.savez(path, **{k: v for k, v in data.items() if k != drop})
    return data


def test_ctrgcn(tmp_path: Path) -> None:
    data = write_ctrgcn(tmp_path / "NTU60_CS.npz")
    source = open_ctrgcn(tmp_path / "NTU60_CS.npz")
    assert source.layout == NTU25 and len(source.class_names) == 60 and source.count == 4
    records = list(source.records())
    shapes = [None if r.clip_MTVC is None else r.clip_MTVC.shape[:2] for r in records]
    assert shapes == [(1, 50), (2, 80), (1, 60), None], "padding, twins and empty rows"
    assert [r.label for r in records] == [3, 59, 0, 7]
    clip = records[1].clip_MTVC
    assert clip is not None
    np.testing.assert_array_equal(clip[1, 7].ravel(), data["x_train"][1, 7, 75:])
    columns = {"part": np.array([r.meta["part"] for r in records[:3]])}
    assert source.splits([], columns)["xsub"].tolist() == [1, 1, 1]


def test_ctrgcn_rows_without_a_label(tmp_path: Path) -> None:
    data = write_ctrgcn(tmp_path / "a.npz")
    data["y_train"][1] = 0
    np.savez(tmp_path / "a.npz", **data)
    assert [r.label for r in open_ctrgcn(tmp_path / "a.npz").records()] == [3, -1, 0, 7]


def test_every_pass_can_begin_later(tmp_path: Path) -> None:
    write_ctrgcn(tmp_path / "a.npz")
    write_nucla(tmp_path / "nucla.npz")
    both = [annotation(name, 0, np.ones((1, 5, 25, 3))) for name in "abc"]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"split": {}, "annotations": both}))
    for source in (
        open_ctrgcn(tmp_path / "a.npz"),
        open_ragged("nucla", tmp_path),
        open_pyskl(tmp_path / "x.pkl"),
    ):
        whole = list(source.records())
        for start in range(len(whole) + 1):
            later = list(source.records(start))
            assert [r.name for r in later] == [r.name for r in whole[start:]]
            for a, b in zip(later, whole[start:], strict=True):
                assert a.clip_MTVC is b.clip_MTVC or np.array_equal(a.clip_MTVC, b.clip_MTVC)


def test_ctrgcn_compressed_file_reads_the_same(tmp_path: Path) -> None:
    data = write_ctrgcn(tmp_path / "a.npz")
    np.savez_compressed(tmp_path / "b.npz", **data)
    pairs = zip(
        open_ctrgcn(tmp_path / "a.npz").records(),
        open_ctrgcn(tmp_path / "b.npz").records(),
        strict=True,
    )
    for a, b in pairs:
        assert (a.clip_MTVC is None) == (b.clip_MTVC is None)
        assert a.clip_MTVC is None or np.array_equal(a.clip_MTVC, b.clip_MTVC)


def test_ctrgcn_bad_files(tmp_path: Path) -> None:
    write_ctrgcn(tmp_path / "a.npz", drop="y_test")
    with pytest.raises(InputError, match="y_test"):
        open_ctrgcn(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:5000])
    for path in (tmp_path / "b.npz", tmp_path / "absent.npz"):
        with pytest.raises(InputError, match=path.name):
            open_ctrgcn(path)


def test_ctrgcn_damage_inside_a_member(tmp_path: Path) -> None:
    data = write_ctrgcn(tmp_path / "a.npz")
    np.savez_compressed(tmp_path / "b.npz", **data)
    for name, at in (("a.npz", 5000), ("b.npz", 2000)):
        whole = bytearray((tmp_path / name).read_bytes())
        for i in range(at, at + 100):
            whole[i] ^= 0xFF
        (tmp_path / name).write_bytes(whole)
        source = open_ctrgcn(tmp_path / name)
        with pytest.raises(InputError, match="x_train is damaged"):
            list(source.records())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"y_train": np.eye(60)[:2]}, "3 clips in x_train, 2 labels"),
        ({"x_train": np.zeros((2, 300, 150), np.float32)}, "2 clips in x_train, 3 labels"),
        ({"x_train": np.zeros((0, 300, 150), np.float32)}, "0 clips in x_train"),
        ({"x_test": np.zeros((1, 300, 75), np.float32)}, "150"),
        ({"y_test": np.array([["one"]])}, "C-ordered numbers"),
        ({"y_train": np.arange(3)}, "C-ordered numbers"),
    ],
)
def test_ctrgcn_arrays_that_do_not_fit(
    tmp_path: Path, change: dict[str, np.ndarray], words: str
) -> None:
    np.savez(tmp_path / "a.npz", **(write_ctrgcn(tmp_path / "a.npz") | change))
    with pytest.raises(InputError, match=words):
        open_ctrgcn(tmp_path / "a.npz")


def annotation(name: Any, label: int, keypoint: np.ndarray) -> dict[str, object]:
    return {"frame_dir": name, "label": label, "keypoint": keypoint, "total_frames": 5}


def test_pyskl(tmp_path: Path) -> None:
    first = RNG.normal(size=(1, 5, 25, 3)).astype(np.float16)
    second = RNG.normal(size=(2, 7, 25, 3)).astype(np.float16)
    second[1] = 0
    broken = np.full((1, 3, 25, 3), np.nan, dtype=np.float16)
    content = {
        "split": {"xsub_train": ["a"], "xsub_val": ["b", "c"], "xview_train": ["b"]},
        "annotations": [
            annotation("a", 0, first),
            annotation("b", np.int64(2), second),
            annotation("c", 1, broken),
            annotation("d", 1, np.full((1, 3, 25, 3), None)),
        ],
    }
    path = tmp_path / "ntu.pkl"
    path.write_bytes(pickle.dumps(content))
    source = open_pyskl(path)
    assert source.layout == NTU25 and len(source.class_names) == 3
    a, b, c, d = source.records()
    assert a.clip_MTVC is not None and np.array_equal(a.clip_MTVC, first.astype(np.float32))
    assert b.clip_MTVC is not None and b.clip_MTVC.shape == (1, 7, 25, 3)
    assert c.clip_MTVC is None and "NaN" in c.reason
    assert d.clip_MTVC is None and "object" in d.reason
    splits = source.splits(["a", "b"], {})
    assert splits["xsub"].tolist() == [1, 2] and splits["xview"].tolist() == [0, 1]


def test_pyskl_split_without_a_name(tmp_path: Path) -> None:
    one = RNG.normal(size=(1, 5, 25, 3))
    both = [annotation("a", 0, one), annotation("b", 0, one)]
    content = {"split": {"train": ["a"], "val": ["b"]}, "annotations": both}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
    splits = open_pyskl(tmp_path / "x.pkl").splits(["a", "b"], {})
    assert {key: codes.tolist() for key, codes in splits.items()} == {"default": [1, 2]}


def test_pyskl_image_key_points_become_metric(tmp_path: Path) -> None:
    person = RNG.uniform(100, 300, size=(1, 6, 17, 2))
    person[0, :, [5, 6]], person[0, :, [11, 12]] = [200, 100], [200, 180]
    score = np.ones((1, 6, 17))
    score[0, 2, 9] = 0
    person[0, 2, 9] = 0
    one = {**annotation("a", 0, person.astype(np.float16)), "keypoint_score": score}
    two = {**annotation("b", 0, person), "keypoint_score": score[..., :3]}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"split": {}, "annotations": [one, two]}))
    source = open_pyskl(tmp_path / "x.pkl")
    assert source.layout == COCO17
    a, b = source.records()
    assert b.clip_MTVC is None and "keypoint_score" in b.reason
    clip = a.clip_MTVC
    assert clip is not None
    filled = person.astype(np.float16).astype(np.float64)[0]
    filled[2, 9] = (filled[1, 9] + filled[3, 9]) / 2
    wanted = (filled - filled[0, 11]) * -(0.5 / 80)
    np.testing.assert_allclose(clip[0, ..., :2], wanted, atol=1e-5)
    assert not clip[..., 2].any()


def test_pyskl_seventeen_joints_in_space_are_human36m(tmp_path: Path) -> None:
    content = {"split": {}, "annotations": [annotation("a", 0, np.ones((1, 6, 17, 3)))]}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
    assert open_pyskl(tmp_path / "x.pkl").layout == H36M17


def test_pyskl_names_of_numpy_and_numbers(tmp_path: Path) -> None:
    names: list[Any] = [np.str_("a"), "b", 7, np.int64(8)]
    content = {
        "split": {"train": names[:2], "val": [np.str_("7"), 8], "other_val": np.array(["a", "b"])},
        "annotations": [annotation(name, 0, np.ones((1, 5, 25, 3))) for name in names],
    }
    path = tmp_path / "x.pkl"
    for protocol in (2, 4, 5):
        path.write_bytes(pickle.dumps(content, protocol))
        source = open_pyskl(path)
        kept = [record.name for record in source.records() if not record.reason]
        splits = source.splits(kept, {})
        assert kept == ["a", "b", "7", "8"] and splits["default"].tolist() == [1, 1, 2, 2]
        assert splits["other"].tolist() == [2, 2, 0, 0]
    for odd in (None, 1.5, ("a",), True, np.float64(1), np.array(["a"]), 10**30, b"a"):
        path.write_bytes(pickle.dumps({**content, "split": {"train": ["a", odd]}}))
        with pytest.raises(InputError, match="split train has a member that is no name"):
            open_pyskl(path)


def test_pyskl_has_as_many_classes_as_a_store_may(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    # The glosses of ASL Citizen, and the most that there may be.
    for classes in (2731, MAX_CLASSES):
        one = annotation("a", classes - 1, np.ones((1, 5, 25, 3)))
        path.write_bytes(pickle.dumps({"split": {}, "annotations": [one]}))
        names = open_pyskl(path).class_names
        assert (names[0], names[-1], len(names)) == ("A001", f"A{classes}", classes)
    path.write_bytes(pickle.dumps({"split": {}, "annotations": [{**one, "label": MAX_CLASSES}]}))
    with pytest.raises(InputError, match=f"label {MAX_CLASSES}.*0..{MAX_CLASSES - 1}"):
        open_pyskl(path)


class Hostile:
    def __init__(self, call: object, *args: object) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call, self.args


@pytest.mark.parametrize(
    "bomb",
    [
        Hostile(os.system, "touch bombed"),
        Hostile(eval, "open('bombed', 'w')"),
        Hostile(getattr, "x", "upper"),
        Hostile(np.load, "x.npy"),
        Hostile(collections.Counter, "abc"),
    ],
    ids=["os.system", "eval", "getattr", "numpy.load", "other class"],
)
def test_hostile_pickles_run_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bomb: Hostile
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bomb.pkl"
    path.write_bytes(pickle.dumps({"split": {}, "annotations": [bomb]}))
    with pytest.raises(InputError, match="not safe"):
        load_restricted(path)
    assert not (tmp_path / "bombed").exists()


def test_pyskl_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    for content, words in (
        ({"annotations": []}, "frame_dir"),
        (
            {"split": {}, "annotations": [annotation("a", 10**12, np.zeros((1, 5, 25, 3)))]},
            "label 1000000000000",
        ),
        ([1, 2], "frame_dir"),
        ({"split": ["a"], "annotations": [annotation("a", 0, np.zeros((1, 5, 25, 3)))]}, "items"),
        ({"split": {}, "annotations": [annotation("a", 0, np.zeros((1, 5, 25, 4)))]}, "M, T, V, 3"),
        ({"split": {}, "annotations": [annotation("a", 0, np.zeros((1, 5, 24, 3)))]}, "24 joints"),
    ):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(InputError, match=words):
            open_pyskl(path)
    path.write_bytes(pickle.dumps({"a": 1})[:-2])
    with pytest.raises(InputError, match="not whole"):
        open_pyskl(path)


def write_nucla(path: Path, **change: object) -> None:
    frames = [4, 3, 5, 6]
    joints = RNG.normal(size=(sum(frames), 1, 20, 3)).astype(np.float32)
    joints[4:7] = 0
    joints[8] = np.nan
    joints[12] = 0
    data: dict[str, object] = {
        "joints": joints,
        "offsets": np.cumsum([0, *frames]),
        "label": np.array([0, 1, 0, 1]),
        "name": np.array(["a", "zero", "nan", "gap"]),
        "class_names": np.array(["x", "y"]),
        "joint_names": np.array([f"j{i}" for i in range(20)]),
        "subject": np.arange(4),
        "camera": np.array([1, 2, 3, 3]),
        "trial": np.zeros(4, int),
        "leaked_test": np.array([False, False, False, True]),
    }
    np.savez(path, **{k: v for k, v in (data | change).items() if v is not None})


def test_ragged(tmp_path: Path) -> None:
    write_nucla(tmp_path / "nucla.npz")
    source = open_ragged("nucla", tmp_path)
    assert source.layout == KINECT20
    found = {r.name: r for r in source.records()}
    assert found["a"].clip_MTVC is not None and found["a"].clip_MTVC.shape == (1, 4, 20, 3)
    assert found["zero"].clip_MTVC is None and "no frame" in found["zero"].reason
    assert found["nan"].clip_MTVC is None and "NaN" in found["nan"].reason
    gap = found["gap"].clip_MTVC
    assert gap is not None and gap.shape[1] == 5, "all-zero frames are dropped"
    splits = source.splits(
        [], {"camera": np.array([1, 2, 3, 3]), "leaked_test": np.array([0, 0, 0, 1])}
    )
    assert splits["xview"].tolist() == [1, 1, 2, 2]
    assert splits["xview_clean"].tolist() == [1, 1, 2, 0]
    assert splits["val"].tolist() == [1, 2, 0, 0], "camera 3 is never looked at"


@pytest.mark.parametrize("name", ["msr_action3d", "utkinect", "florence3d", "ui_prmd"])
def test_odd_subjects_train_and_the_last_two_of_them_validate(name: str) -> None:
    splits = SETS[name].splits({"subject": np.array([1, 2, 5, 7, 8, 9, 10])})
    assert splits["xsub"].tolist() == [1, 2, 1, 1, 2, 1, 2]
    assert splits["val"].tolist() == [1, 0, 1, 2, 0, 2, 0], "test subjects are never looked at"


def test_styles_of_bandai_namco() -> None:
    splits = SETS["bandai_namco"].splits({"style": np.arange(7)})
    assert splits["xstyle"].tolist() == [1, 2, 2, 1, 2, 1, 1]
    assert splits["val"].tolist() == [1, 0, 0, 1, 0, 1, 2], "test styles are never looked at"


def test_a_known_rate_comes_into_the_store(tmp_path: Path) -> None:
    write_nucla(tmp_path / "nucla.npz")
    assert open_ragged("nucla", tmp_path).fps == 0
    write_nucla(tmp_path / "nucla.npz", fps=15.0)
    assert open_ragged("nucla", tmp_path).fps == 15


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fps": np.array([15.0, 30.0])}, "fps is float64"),
        ({"fps": np.nan}, "fps is not a number"),
        ({"fps": -1.0}, "fps is not a number"),
        ({"camera": None}, "camera"),
        ({"joints": np.zeros((18, 1, 25, 3), np.float32)}, "shape"),
        ({"offsets": np.array([0, 4, 7, 12, 99])}, "offsets"),
    ],
)
def test_ragged_bad_files(tmp_path: Path, change: dict[str, object], words: str) -> None:
    write_nucla(tmp_path / "nucla.npz", **change)
    with pytest.raises(InputError, match=words):
        open_ragged("nucla", tmp_path)


def test_ragged_damaged_file(tmp_path: Path) -> None:
    write_nucla(tmp_path / "nucla.npz")
    whole = (tmp_path / "nucla.npz").read_bytes()
    (tmp_path / "nucla.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="readable"):
        open_ragged("nucla", tmp_path)
    with pytest.raises(InputError, match="No such file"):
        open_ragged("nucla", tmp_path / "elsewhere")
