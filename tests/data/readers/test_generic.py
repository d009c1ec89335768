"""A folder of your own: .npy and pose JSON with labels.csv, and every way to get it wrong."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from sjepa_fast.data.readers.generic import open_generic
from sjepa_fast.data.readers.pose_json import read_pose_json
from sjepa_fast.data.readers.record import Record
from sjepa_fast.data.store import open_store
from sjepa_fast.errors import InputError
from sjepa_fast.prepare import PrepareConfig, prepare
from sjepa_fast.skeletons import COCO17, H36M17, MEDIAPIPE33, OPENPOSE18, SkeletonLayout

RNG = np.random.default_rng(0)


def found(raw: Path, layout: str = "h36m17") -> dict[str, Record]:
    source = open_generic(raw, layout=layout)
    records = list(source.records())
    assert len(records) == source.count
    for start in range(len(records)):
        assert [r.name for r in source.records(start)] == [r.name for r in records[start:]]
    return {record.name: record for record in records}


def test_arrays(tmp_path: Path) -> None:
    one, two = RNG.normal(size=(4, 17, 3)), RNG.normal(size=(2, 6, 17, 3))
    two[1] = 0
    flat = RNG.uniform(100, 400, size=(5, 17, 2))
    for name, array in (("a", one), ("b", two), ("c", flat)):
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "labels.csv").write_text(
        "name,label,subject,split,split_late\na,wave,3,train,\nb,sit,4,test,train\nc,wave,5,,test\n"
    )
    prepare(
        PrepareConfig(
            "generic", tmp_path, tmp_path.with_name(f"{tmp_path.name}.out"), layout="h36m17"
        )
    )
    store = open_store(tmp_path.with_name(f"{tmp_path.name}.out"))
    assert store.layout == H36M17 and store.class_names == ("sit", "wave")
    assert store.labels.tolist() == [1, 0, 1] and store.meta["subject"].tolist() == [3, 4, 5]
    assert np.array_equal(store.clip(0)[0], one.astype(np.float32))
    assert store.clip(1).shape == (1, 6, 17, 3), "a body that is all zero is none"
    assert not store.clip(2)[..., 2].any() and store.clip(2)[..., 1].any()
    assert {k: v.tolist() for k, v in store.splits.items()} == {
        "default": [1, 2, 0],
        "late": [0, 1, 2],
    }
    assert store.name == tmp_path.name


@pytest.mark.parametrize("odd", [b"my\xe3\x80\x80clips", b"my\xff", b"my\\clips"])
def test_a_folder_of_any_name_can_be_prepared(tmp_path: Path, odd: bytes) -> None:
    raw = tmp_path / os.fsdecode(odd)
    raw.mkdir()
    np.save(raw / "x.npy", np.ones((4, 17, 3)))
    (raw / "labels.csv").write_text("name,label\nx,0\n")
    prepare(PrepareConfig("generic", raw, tmp_path / "out", layout="h36m17"))
    store = open_store(tmp_path / "out")
    assert len(store.frames) == 1 and store.name.startswith("my")


def test_a_layout_of_your_own(tmp_path: Path) -> None:
    layout = SkeletonLayout("stick", ("a", "b", "c"), (0, 0, 0), ((1, 2),), 0, 1, (1, 2), (2, 1))
    (tmp_path / "layout.json").write_text(json.dumps(layout.to_dict()))
    np.save(tmp_path / "x.npy", np.ones((4, 3, 3)))
    (tmp_path / "labels.csv").write_text("name,label\nx,2\n")
    source = open_generic(tmp_path)
    assert source.layout == layout and source.class_names == ("0", "1", "2")
    assert found(tmp_path, "")["x"].clip_MTVC is not None


def test_bad_rows_and_files_are_skipped_with_the_reason(tmp_path: Path) -> None:
    good = np.ones((4, 17, 3))
    for name, array in {
        "good": good,
        "joints": np.ones((4, 16, 3)),
        "flat": np.ones((4, 17)),
        "empty": np.ones((0, 17, 3)),
        "nan": np.full((4, 17, 3), np.nan),
        "zero": np.zeros((4, 17, 3)),
        "words": np.full((4, 17, 3), "x"),
        "stray": good,
        "deep": np.ones((1, 1, 4, 17, 3)),
        "negative": good,
    }.items():
        np.save(tmp_path / f"{name}.npy", array)
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:200])
    (tmp_path / "void.npy").write_bytes(b"")
    (tmp_path / "pose.json").write_text("[]")
    names = "good joints flat empty nan zero words deep object cut void pose absent ../good"
    rows = "".join(f"{name},0\n" for name in [*names.split(), "good"])
    (tmp_path / "labels.csv").write_text(f"name,label\n{rows}negative,-1\n")
    prepare(
        PrepareConfig(
            "generic", tmp_path, tmp_path.with_name(f"{tmp_path.name}.out"), layout="h36m17"
        )
    )
    store = open_store(tmp_path.with_name(f"{tmp_path.name}.out"))
    assert store.names.tolist() == ["good"]
    reasons = dict(store.skipped)
    for name, words in {
        "joints": "shape (4, 16, 3)",
        "flat": "shape (4, 17)",
        "empty": "shape (0, 17, 3)",
        "nan": "NaN",
        "zero": "no frame",
        "words": "type <U1",
        "deep": "shape (1, 1, 4, 17, 3)",
        "object": "allow_pickle",
        "cut": "ends early: 72 of 1632 bytes",
        "void": "",
        "pose": "coco17, openpose18, mediapipe33 only",
        "absent": "none of absent.npy",
        "../good": "no file name",
        "good": "occurs twice",
        "negative": "label: -1",
        "stray.npy": "not in labels.csv",
    }.items():
        assert words in reasons[name], (name, reasons[name])
    assert len(store.skipped) == 16


@pytest.mark.parametrize(
    ("text", "layout", "words"),
    [
        (None, "coco17", r"has no \.npy, \.json, \.bvh, \.c3d"),
        ("", "coco17", "no column name"),
        ("class,label\na,0\n", "coco17", "no column name"),
        ("name,label\n", "coco17", "no rows"),
        ("name,label,split\na,0,val\n", "coco17", "split 'val'"),
        ("name,label,subject\na,0,Tom\n", "coco17", "subject 'Tom'"),
        ("name,label,subject\na,0\n", "coco17", "subject ''"),
        ("name,label,subject\na,0,\u00b2\n", "coco17", "subject"),
        ("name,label\na,999999999999\n", "coco17", "label 999999999999"),
        ("name,label\na,0\n", "coco71", "coco17"),
        ("name,label\na,0\n", "", "layout.json"),
    ],
)
def test_bad_tables_end_the_run(tmp_path: Path, text: str | None, layout: str, words: str) -> None:
    if text is not None:
        (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        open_generic(tmp_path, layout=layout)
    if words == "layout.json":
        for content in ("{", "[1]", "{}"):
            (tmp_path / "layout.json").write_text(content)
            with pytest.raises(InputError):
                open_generic(tmp_path, layout=layout)


@pytest.mark.parametrize(
    ("layout", "joints", "words"),
    [
        ("ntu25", 33, "ntu25 has 25 joints, a.npy 33; choose one with as many: mediapipe33"),
        ("coco17", 31, "coco17 has 17 joints, a.npy 31; describe them in layout.json"),
    ],
)
def test_a_layout_that_no_array_fits_is_refused_before_any_is_read(
    tmp_path: Path, layout: str, joints: int, words: str
) -> None:
    (tmp_path / "labels.csv").write_text("name,label\nflat,0\ncut,0\n../a,0\na,0\nb,1\n")
    np.save(tmp_path / "flat.npy", np.ones((4, joints)))
    (tmp_path / "cut.npy").write_bytes(b"")
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", np.full((2, 4, joints, 3), np.nan))
    with pytest.raises(InputError, match=words):
        open_generic(tmp_path, layout=layout)
    np.save(tmp_path / "b.npy", np.ones((4, int(layout[-2:]), 3)))
    assert found(tmp_path, layout)["b"].clip_MTVC is not None
    (tmp_path / "b.npy").unlink()
    (tmp_path / "b.json").write_text("[]")
    assert "joints" not in found(tmp_path, layout)["b"].reason


def people(layout: SkeletonLayout, frames: int) -> np.ndarray:
    """(T, V, 3): x, y, score of one person in an image."""
    poses = RNG.uniform(50, 60, size=(frames, layout.num_joints, 3))
    poses[..., 2] = 0.9
    return poses


def test_coco_json(tmp_path: Path) -> None:
    poses = people(COCO17, 11)
    listed = [
        {"image_id": f"frame{t}.jpg", "keypoints": poses[t].ravel().tolist(), "category_id": 1}
        for t in RNG.permutation(11).tolist()
    ]
    for content in (listed, {"annotations": listed}):
        (tmp_path / "a.json").write_text(json.dumps(content))
        frames, image = read_pose_json(tmp_path / "a.json", "coco17", 17)
        assert image and len(frames) == 11, "frame10 comes after frame9"
        for people_there, pose in zip(frames, poses, strict=True):
            np.testing.assert_array_equal(people_there[0].pose_V4[:, [0, 1, 3]], pose)
    (tmp_path / "labels.csv").write_text("name,label\na,walk\n")
    clip = found(tmp_path, "coco17")["a"].clip_MTVC
    assert clip is not None and clip.shape == (1, 11, 17, 3)


def test_openpose_json_in_three_forms(tmp_path: Path) -> None:
    poses = people(OPENPOSE18, 12)
    one = [{"people": [{"pose_keypoints_2d": pose.ravel().tolist()}]} for pose in poses]
    (tmp_path / "folder").mkdir()
    for t, frame in enumerate(one):
        (tmp_path / "folder" / f"clip_{t}_keypoints.json").write_text(json.dumps(frame))
    (tmp_path / "listed.json").write_text(json.dumps(one))
    data = [
        {"skeleton": [{"pose": pose[:, :2].ravel().tolist(), "score": pose[:, 2].tolist()}]}
        for pose in poses
    ]
    (tmp_path / "kinetics.json").write_text(json.dumps({"data": data, "label": "x"}))
    for name in ("folder", "listed.json", "kinetics.json"):
        frames, image = read_pose_json(tmp_path / name, "openpose18", 18)
        assert image
        for people_there, pose in zip(frames, poses, strict=True):
            np.testing.assert_array_equal(people_there[0].pose_V4[:, [0, 1, 3]], pose)
    (tmp_path / "labels.csv").write_text("name,label\nfolder,0\nlisted,0\nkinetics,0\n")
    clips = [record.clip_MTVC for record in found(tmp_path, "openpose18").values()]
    assert clips[0] is not None and clips[1] is not None
    assert np.array_equal(clips[0], clips[1])


def test_kinetics_coordinates_get_their_aspect_back(tmp_path: Path) -> None:
    data = {"data": [{"skeleton": [{"pose": [0.5, 0.5] * 18, "score": [1] * 18}]}]}
    (tmp_path / "a.json").write_text(json.dumps(data))
    ((person,),), _ = read_pose_json(tmp_path / "a.json", "openpose18", 18)
    assert person.pose_V4[3].tolist() == [0.5 * 340 / 256, 0.5, 0, 1]


@pytest.mark.parametrize("key", ["pose_world_landmarks", "worldLandmarks"])
def test_mediapipe_json(tmp_path: Path, key: str) -> None:
    xyz = RNG.normal(size=(7, 33, 3))
    frames = [
        {key: [[{"x": x, "y": y, "z": z, "visibility": 0.5} for x, y, z in pose.tolist()]]}
        for pose in xyz
    ]
    frames.insert(3, {key: []})
    (tmp_path / "labels.csv").write_text("name,label\na,0\n")
    for content in (frames, {"frames": frames}):
        (tmp_path / "a.json").write_text(json.dumps(content))
        clip = found(tmp_path, "mediapipe33")["a"].clip_MTVC
        assert clip is not None
        wanted = (xyz - xyz[0, MEDIAPIPE33.center]) * [-1, -1, 1]
        np.testing.assert_allclose(clip[0], wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("layout", "content", "words"),
    [
        ("coco17", "{", "Expecting"),
        ("coco17", "[1]", "not the JSON of coco17"),
        ("coco17", '[{"image_id": 1, "keypoints": [1, 2, 3]}]', "3 numbers per person"),
        ("coco17", '[{"image_id": 1, "keypoints": "x"}]', "could not convert"),
        ("coco17", "[]", "nobody"),
        ("openpose18", '{"people": 3}', "not the JSON of openpose18"),
        ("openpose18", '{"people": []}', "nobody"),
        ("openpose18", '{"data": [{"skeleton": [{"pose": [1, 2, 3], "score": [1]}]}]}', "reshape"),
        ("mediapipe33", '[{"pose_world_landmarks": [[{"x": 1}]]}]', "1 landmarks"),
        ("coco17", "[" * 100_000, "nested too deeply"),
        (
            "coco17",
            '[{"image_id": 1, "track_id": 1e999, "keypoints": [' + "1," * 50 + "1]}]",
            "OverflowError",
        ),
        ("mediapipe33", "{}", "not the JSON of mediapipe33"),
    ],
)
def test_bad_json_is_skipped_with_the_reason(
    tmp_path: Path, layout: str, content: str, words: str
) -> None:
    (tmp_path / "a.json").write_text(content)
    (tmp_path / "labels.csv").write_text("name,label\na,0\n")
    record = found(tmp_path, layout)["a"]
    assert record.clip_MTVC is None and words in record.reason, record.reason
