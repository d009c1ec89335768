"""Mutated raw data for every reader, prepared as `python -m sjepa_fast.prepare` prepares them."""

from __future__ import annotations

import json
import pickle
import pickletools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sjepa_fast.data.readers.ragged_npz import SETS
from sjepa_fast.prepare import PrepareConfig, prepare
from tests.fuzz.mutate import (
    TEXTS,
    mutate_bytes,
    mutate_json,
    mutate_npy,
    mutate_text,
    mutate_tree,
    mutate_zip,
    npy_bytes,
    put,
    put_odd,
    zip_bytes,
)
from tests.fuzz.target import Target

Made = tuple[Path, PrepareConfig]
CLIP = np.random.default_rng(0).normal(size=(14, 25, 3)).round(4) * [0.1, 0.6, 0.1]


def _skeleton(bodies: int = 1, frames: int = 13) -> str:
    parts = [f"{frames}\n"]
    for frame in CLIP[:frames]:
        parts.append(f"{bodies}\n")
        rows = "".join(f"{x} {y} {z} 1 2 3 4 5 6 7 8 2\n" for x, y, z in frame)
        parts += [f"7205759403{body} 0 1 1 1 1 0 0 0 2\n25\n{rows}" for body in range(bodies)]
    return "".join(parts)


def _cut(frames: int = 3) -> str:
    rows = ["\n".join(" ".join(map(str, xyz)) for xyz in frame) for frame in CLIP[:frames]]
    return f"{frames}\n" + "".join(f"1\nhead 0 1\n25\n{row}\n" for row in rows)


def _text(rng: random.Random, folder: Path, name: str, text: str) -> None:
    tokens = ("25", "-1", "999999999", "1e30", "7205759403", "0")
    put(rng, folder / name, mutate_text(rng, text, tokens))


def _job(name: str, folder: Path, raw: Path, **more: Any) -> Made:
    return folder, PrepareConfig(name, raw, folder / "out", **more)


def _make_ntu(rng: random.Random, folder: Path) -> Made:
    raw = folder / "raw"
    raw.mkdir()
    (raw / "S001C001P001R001A001.skeleton").write_text(_skeleton())
    _text(rng, raw, "S001C001P001R001A002.skeleton", _skeleton(rng.choice((1, 2)), 13))
    return _job(rng.choice(("ntu60", "ntu120")), folder, raw)


def _make_missing(rng: random.Random, folder: Path) -> Made:
    raw = folder / "raw"
    raw.mkdir()
    (raw / "S001C001P001R001A001.skeleton").write_text(_skeleton())
    lines = "\n".join(f"S001C001P001R001A{i:03d}" for i in range(2, 9))
    _text(rng, folder, "missing.txt", f"The samples:\n{lines}\n")
    return _job("ntu60", folder, raw, missing=folder / "missing.txt")


def _make_pku(rng: random.Random, folder: Path) -> Made:
    raw = folder / "raw"
    name, stem = rng.choice((("pku1", "0002-L"), ("pku2", "A01N02-L")))
    for part in ("skeleton", "label"):
        (raw / part).mkdir(parents=True)
    rows = [[*body.ravel(), *np.zeros(75)] for body in CLIP]
    text = "".join(" ".join(map(str, row)) + "\n" for row in rows)
    label = "1,0,5,2\n51,5,14,1\n"
    listed = f"Training videos:\n{stem[:-2]}, 0003\n"
    which = rng.randrange(4)
    if which == 3:
        _text(rng, raw, "cross-subject.txt", listed)
    put_skeleton = mutate_text(rng, text) if which == 0 else text.encode()
    put_label = mutate_text(rng, label.replace(",", " , ")) if which == 1 else label.encode()
    put(rng, raw / "skeleton" / f"{stem}.txt", put_skeleton)
    put(rng, raw / "label" / f"{stem}.txt", put_label)
    if which == 2:
        stem = f"A{'9' * rng.choice((3, 19, 30, 200))}N02-R"
        (raw / "skeleton" / f"{stem}.txt").write_text(text)
        (raw / "label" / f"{stem}.txt").write_text(label)
    return _job(name, folder, raw)


def _make_cut(rng: random.Random, folder: Path) -> Made:
    raw = folder / "raw"
    raw.mkdir()
    _text(rng, raw, "F002V001C001L001.skeleton", _cut())
    (raw / "F003V001C001L001.skeleton").write_text(_cut())
    return _job("pku1", folder, raw)


def ragged_arrays(name: str) -> dict[str, np.ndarray]:
    """Return the arrays of a small file in the ragged layout, for a set of `SETS`."""
    spec = SETS[name]
    joints = spec.layout.num_joints
    rows = np.resize(CLIP, (9, 1, joints, 3)).astype(np.float32)
    columns = {key: np.arange(1, 4) for key in (*spec.columns, *([spec.used] * bool(spec.used)))}
    return {
        "joints": rows,
        "offsets": np.array([0, 3, 5, 9]),
        "label": np.array([0, 1, 0]),
        "name": np.array(["a", "b", "c"]),
        "class_names": np.array(["x", "y"]),
        "joint_names": np.array(spec.order or [f"j{i}" for i in range(joints)]),
        **columns,
    }


def mutate_arrays(rng: random.Random, arrays: dict[str, np.ndarray]) -> bytes:
    """Return an `.npz` of which one or two arrays, or the archive, are changed."""
    members = {f"{key}.npy": npy_bytes(array) for key, array in arrays.items()}
    for key in rng.sample(sorted(arrays), rng.choice((1, 1, 2))):
        members[f"{key}.npy"] = _array(rng, arrays[key])
    # Most archives are whole, so that what is in them is reached.
    return mutate_zip(rng, members) if rng.random() < 0.4 else zip_bytes(members)


def _array(rng: random.Random, array: np.ndarray) -> bytes:
    kind = rng.randrange(8) if array.ndim else 7
    if kind == 0:
        dtypes = (
            ("U8", "U1") if array.dtype.kind == "U" else ("U8", "f4", "u8", "i1", "S9", "c8", "?")
        )
        return npy_bytes(array.astype(rng.choice(dtypes)))
    if kind == 1:
        return npy_bytes(array[: rng.randrange(len(array) + 1)])
    if kind == 2:
        return npy_bytes(np.asfortranarray(array[None] if rng.random() < 0.5 else array[::-1]))
    if kind == 3:
        return npy_bytes(array.reshape(-1)[0])
    if kind in (4, 5) and array.dtype.kind in "iu" and rng.random() < 0.7:
        numbers = array.copy()
        numbers[rng.randrange(len(numbers))] = rng.choice((-1, 0, 1, 2, 5, 9, 100, 2**62))
        return npy_bytes(numbers)
    if kind == 4 and array.dtype.kind == "U":
        words = array.astype("U40")
        words[rng.randrange(len(words))] = rng.choice(TEXTS)[:40].replace("\0", "0")
        return npy_bytes(words)
    return mutate_npy(rng, array)


def _make_ragged(rng: random.Random, folder: Path) -> Made:
    name = rng.choice(sorted(SETS))
    arrays = ragged_arrays(name)
    if name == "nucla" and rng.random() < 0.2:
        arrays["scale"] = np.array(0.001)
    put(rng, folder / "raw.npz", mutate_arrays(rng, arrays))
    return _job(name, folder, folder / "raw.npz")


def _make_ctrgcn(rng: random.Random, folder: Path) -> Made:
    x = np.zeros((3, 20, 150), dtype=np.float32)
    x[:, :14, :75] = CLIP.reshape(14, 75)
    y = np.eye(4)[[0, 3, 1]]
    arrays = {"x_train": x[:2], "y_train": y[:2], "x_test": x[2:], "y_test": y[2:]}
    put(rng, folder / "raw.npz", mutate_arrays(rng, arrays))
    split = rng.choice(("xsub", "xsub", rng.choice(TEXTS)))
    return _job("ctrgcn", folder, folder / "raw.npz", split_name=split)


def pyskl_content(coordinates: int = 3) -> dict[str, Any]:
    """Return what a small pyskl pickle holds."""
    one: dict[str, Any] = {"frame_dir": "a", "label": 0, "total_frames": 14, "img_shape": (1, 2)}
    if coordinates == 3:
        one["keypoint"] = CLIP[None].astype(np.float16)
    else:
        one["keypoint"] = np.abs(CLIP[None, :, :17, :2]) * 100
        one["keypoint_score"] = np.ones((1, 14, 17), np.float16)
    return {
        "split": {"xsub_train": ["a"], "xsub_val": ["b"]},
        "annotations": [one, {**one, "frame_dir": "b", "label": np.int64(1)}],
    }


_PICKLES = (
    b"r\xff\xff\xff\x0f",  # LONG_BINPUT far away
    b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",  # BINBYTES8
    b"\x96\xff\xff\xff\xff\x00\x00\x00\x00",  # BYTEARRAY8
    b"\x95\x00\x00\x00\x00\x01\x00\x00\x00",  # FRAME
    b"\x8a\xff\x7f",  # LONG1
    b"\x8b\xff\xff\xff\x7f",  # LONG4
    b"((((((((",
    b"2\x86" * 40,  # DUP TUPLE2
    b"}" * 3000,
    b"\x8f" * 3000,
    b"cos\nsystem\n",
    b"R",
    b"b",
    b"\x94" * 20,
    b"cnumpy\nndarray\n(J\xff\xff\xff\x7f\x85tR",
    b"\x82\x01",
    b"P1\n",
)


def _make_pyskl(rng: random.Random, folder: Path) -> Made:
    content = pyskl_content(rng.choice((2, 3)))
    kind = rng.randrange(5)
    if kind < 3:
        content = mutate_tree(rng, content)
    if kind == 3 and isinstance(content, dict):
        one = content["annotations"][rng.randrange(2)]
        array = one["keypoint"]
        other: Any = rng.choice(
            (
                np.zeros((1, 0, 25, 3)),
                array.astype(">f4"),
                array.astype(object),
                np.asfortranarray(array),
                np.broadcast_to(array[:, :1], array.shape),
                array.tolist(),
                np.array("2020", "M8[s]"),
                np.zeros(3, [("a", "f4")]),
                array * np.float16(np.nan),
                array.astype(complex),
                np.float64(1),
            )
        )
        one[rng.choice(("keypoint", "keypoint_score", "label", "frame_dir"))] = other
    try:
        data = pickle.dumps(content, protocol=rng.choice((2, 3, 4, 5)))
    except RecursionError:
        data = b"x"
    if kind > 3:
        opcodes = [at for _, _, at in pickletools.genops(data) if at is not None]
        at = rng.choice(opcodes)
        data = data[:at] + rng.choice(_PICKLES) * rng.choice((1, 1, 500)) + data[at:]
    if rng.random() < 0.4:
        data = mutate_bytes(rng, data, _PICKLES)
    put(rng, folder / "raw.pkl", data)
    return _job("pyskl", folder, folder / "raw.pkl")


def _poses(layout: str) -> Any:
    one = [round(float(x), 3) + 1 for x in CLIP[:, :18, :].reshape(14, -1)[0]]
    if layout == "coco17":
        return [{"image_id": f"f{t}.jpg", "keypoints": one[:51], "track_id": 1} for t in range(3)]
    if layout == "openpose18":
        return [{"people": [{"pose_keypoints_2d": one}]}] * 3
    if layout == "kinetics":
        return {"data": [{"skeleton": [{"pose": one[:36], "score": one[:18]}]}] * 3}
    points = [dict(zip("xyz", xyz, strict=True)) for xyz in np.resize(CLIP, (33, 3)).tolist()]
    return [{"pose_world_landmarks": [points]}] * 3


def _make_json(rng: random.Random, folder: Path) -> Made:
    raw = folder / "raw"
    raw.mkdir()
    (raw / "labels.csv").write_text("name,label\na,0\nb,1\n")
    kind = rng.choice(("coco17", "openpose18", "kinetics", "mediapipe33"))
    layout = kind.replace("kinetics", "openpose18")
    poses = _poses(kind)
    (raw / "a.json").write_text(json.dumps(poses))
    if layout == "openpose18" and rng.random() < 0.3:
        (raw / "b").mkdir()
        (raw / "b" / "1.json").write_text(json.dumps(_poses("openpose18")[0]))
        put(rng, raw / "b" / "2.json", mutate_json(rng, _poses("openpose18")[0]))
    else:
        put(rng, raw / "b.json", mutate_json(rng, poses))
    return _job("generic", folder, raw, layout=layout)


def _make_npy(rng: random.Random, folder: Path) -> Made:
    raw = folder / "raw"
    raw.mkdir()
    (raw / "labels.csv").write_text("name,label,subject,split\na,0,1,train\nb,1,2,test\n")
    array = CLIP[None] if rng.random() < 0.5 else CLIP[:, :17, :2].astype(np.float32) + 5
    (raw / "a.npy").write_bytes(npy_bytes(CLIP if array.shape[-1] == 3 else array))
    put(rng, raw / "b.npy", _array(rng, array))
    layout = "ntu25" if array.shape[-1] == 3 else "coco17"
    dtype = rng.choice(("float32", "float16"))
    return _job("generic", folder, raw, layout=layout, dtype=dtype)


def _make_csv(rng: random.Random, folder: Path) -> Made:
    raw = folder / "raw"
    raw.mkdir()
    rows = "name,label,subject,split,split_late\na,wave,3,train,\nb,sit,4,test,train\n"
    text = mutate_text(rng, rows.replace(",", " , ")).replace(b" , ", b",")
    if rng.random() < 0.1:
        wide = rng.choice((10, 100, 20_000))
        text = b"name,label" + b",c" * wide + b"\n" + b"a,0\n" * rng.choice((3, 300, 20_000))
    put(rng, raw / "labels.csv", text)
    for name in ("a", "b"):
        (raw / f"{name}.npy").write_bytes(npy_bytes(CLIP))
    if rng.random() < 0.2:
        put_odd(rng.choice(("loop", "fifo", "dangling", "folder")), raw / "c.npy")
    return _job("generic", folder, raw, layout="ntu25")


STICK = {
    "name": "stick",
    "joints": ["pelvis", "neck", "l_shoulder", "r_shoulder", "l_hip", "r_hip"],
    "parents": [0, 0, 1, 1, 0, 0],
    "swaps": [[2, 3], [4, 5]],
    "center": 0,
    "spine_top": 1,
    "shoulders": [2, 3],
    "hips": [4, 5],
}


def _make_layout(rng: random.Random, folder: Path) -> Made:
    raw = folder / "raw"
    raw.mkdir()
    (raw / "labels.csv").write_text("name,label\na,0\n")
    (raw / "a.npy").write_bytes(npy_bytes(CLIP[:, :6]))
    put(rng, raw / "layout.json", mutate_json(rng, STICK))
    return _job("generic", folder, raw)


def prepared(made: Made) -> str | None:
    """Prepare what was made."""
    folder, request = made
    prepare(request)
    skipped = folder / "out.skipped.txt"
    return f"skipped: {skipped.read_text()[:200]}" if skipped.exists() else None


def _setup(folder: Path) -> None:
    # One good clip, so that what is imported and allocated once is there before memory is counted.
    raw = folder / "raw"
    raw.mkdir()
    (raw / "S001C001P001R001A001.skeleton").write_text(_skeleton())
    prepare(PrepareConfig("ntu60", raw, folder / "out"))


_MAKES: dict[str, Callable[[random.Random, Path], Made]] = {
    "ntu": _make_ntu,
    "ntu-missing": _make_missing,
    "pku": _make_pku,
    "pku-cut": _make_cut,
    "ragged": _make_ragged,
    "ctrgcn": _make_ctrgcn,
    "pyskl": _make_pyskl,
    "generic-npy": _make_npy,
    "generic-json": _make_json,
    "generic-csv": _make_csv,
    "generic-layout": _make_layout,
}
TARGETS = tuple(Target(f"reader-{name}", make, prepared, _setup) for name, make in _MAKES.items())
