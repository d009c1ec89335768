"""Every command of docs/data.md is run as it stands, on small files in the exact formats."""

import importlib
import importlib.util
import json
import pickle
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from sjepa_fast.data.readers import READERS
from sjepa_fast.data.store import open_store
from sjepa_fast.data.synthetic import synthetic_clip
from sjepa_fast.joint_map import map_joints
from sjepa_fast.skeletons import KINECT15, KINECT20, KINECT22, LAYOUTS, NTU25, RIG21
from tests.data.readers.test_mocap import PELVIS, bvh_text, motion, upright, write_c3d
from tests.tiny import ROOT, SMALL, blocks, flags, run_documented

DATA = "docs/data.md"
# Those of the table in the document.
CLIPS = ("reach_01", "reach_02", "wave_01")
MOCAP = {"bvh_clips", "c3d_clips"}
RNG = np.random.default_rng(0)


def write_ntu(folder: Path) -> None:
    folder.mkdir()
    for name in ("S001C001P001R001A013", "S002C002P003R001A050", "S001C003P002R001A100"):
        lines = ["30"]
        for joints in RNG.normal(size=(30, 25, 3)) * [0.05, 0.6, 0.05] + [0, 0, 3]:
            lines += ["1", "7205 0 1 1 1 1 0 0 0 2", "25"]
            lines += [f"{x:.7g} {y:.7g} {z:.7g} 0 0 0 0 0 0 0 0 2" for x, y, z in joints]
        (folder / f"{name}.skeleton").write_text("\n".join(lines) + "\n")
    for number in (60, 120):
        names = "S001C001P001R001A099\n"
        Path(f"missing{number}.txt").write_text(f"missing skeletons:\n{names}")


def people(name: str, joints: int, v1: list[str]) -> np.ndarray:
    """Four clips of 12 frames as a file of a small set holds them, (48, 1, joints, 3)."""
    layout = {20: KINECT20, 15: KINECT15, 22: KINECT22, 21: RIG21}[joints]
    rows = map_joints(NTU25, layout)
    whole = np.concatenate([synthetic_clip(i, i, 1, 0)[0, :12] for i in range(4)])
    found = np.stack([whole[:, list(row)].mean(axis=1) for row in rows], axis=1)[:, None]
    if name == "msr_action3d":
        found = found[:, :, [layout.joints.index(joint) for joint in v1]]
    return found[..., [0, 2, 1]] if name == "florence3d" else found


def write_small_sets(folder: Path) -> None:
    folder.mkdir()
    v1 = [
        f"{part}_{side}"
        for part in ("shoulder", "elbow", "wrist", "hand", "hip", "knee")
        for side in ("left", "right")
    ]
    v1 += ["ankle_left", "ankle_right", "foot_left", "foot_right"]
    v1 += ["hip_center", "spine", "shoulder_center", "head"]
    sets = {
        "nucla": 20,
        "msr_action3d": 20,
        "utkinect": 20,
        "sbu_interaction": 15,
        "florence3d": 15,
        "ui_prmd_small": 22,
        "bandai_namco_2": 21,
    }
    rates = {"ui_prmd_small": 15.0, "bandai_namco_2": 30.0}
    for name, joints in sets.items():
        columns = ("subject", "subject2", "trial", "leaked_test", "fold", "style")
        np.savez(
            folder / f"{name}.npz",
            joints=people(name, joints, v1),
            offsets=np.arange(0, 49, 12),
            label=np.arange(4) // 2,
            name=np.array(["a", "b", "c", "d"]),
            class_names=np.array(["x", "y"]),
            joint_names=np.array(v1 if joints == 20 else [f"j{i}" for i in range(joints)]),
            used_cvpr12=np.ones(4, dtype=bool),
            camera=1 + 2 * (np.arange(4) % 2),
            **{key: np.arange(4) % 2 for key in columns},
            **({"fps": rates[name]} if name in rates else {}),
        )


def write_pickles() -> None:
    for file, keypoint in (("3danno", (2, 9, 25, 3)), ("hrnet", (1, 9, 17, 2))):
        annotations = [
            {
                "frame_dir": name,
                "label": label,
                "keypoint": RNG.uniform(1, 200, size=keypoint).astype(np.float16),
                "keypoint_score": np.ones(keypoint[:3], dtype=np.float16),
            }
            for label, name in enumerate("ab")
        ]
        content = {"split": {"xsub_train": ["a"], "xsub_val": ["b"]}, "annotations": annotations}
        Path(f"ntu60_{file}.pkl").write_bytes(pickle.dumps(content))


def write_own(folder: str) -> Path:
    """A folder with the table of the document."""
    Path(folder).mkdir()
    (table,) = blocks(DATA, "csv")
    (Path(folder) / "labels.csv").write_text(table)
    return Path(folder)


def write_own_folders() -> None:
    for folder, joints in (("my_clips", 17), ("stick_clips", 6)):
        raw = write_own(folder)
        for clip in CLIPS:
            np.save(raw / f"{clip}.npy", RNG.normal(size=(12, joints, 3)))
    Path("unlabelled_clips").mkdir()
    for clip in range(5):
        np.save(f"unlabelled_clips/{clip}.npy", RNG.normal(size=(8, 17, 3), scale=500).astype(int))
    exec(blocks(DATA, "python")[0], {})
    Path("bvh_clips").mkdir()
    Path("c3d_clips").mkdir()
    for clip in CLIPS:
        Path(f"bvh_clips/{clip}.bvh").write_text(bvh_text(*motion(), 1.0))
    Path("c3d_clips/layout.json").write_text(json.dumps(PELVIS.to_dict()))
    for folder, joints in (("coco_clips", 17), ("openpose_clips", 18), ("mediapipe_clips", 33)):
        raw = write_own(folder)
        for clip in CLIPS:
            poses = RNG.uniform(0.5, 90, size=(8, joints, 3))
            flat = [pose.ravel().tolist() for pose in poses]
            if joints == 17:
                content: object = [{"image_id": t, "keypoints": f} for t, f in enumerate(flat)]
            elif joints == 33:
                points = [[dict(zip("xyz", p, strict=True)) for p in q] for q in poses.tolist()]
                content = [{"pose_world_landmarks": [person]} for person in points]
            else:
                (raw / clip).mkdir()
                for t, f in enumerate(flat):
                    frame = {"people": [{"pose_keypoints_2d": f}]}
                    (raw / clip / f"{t}_keypoints.json").write_text(json.dumps(frame))
                continue
            (raw / f"{clip}.json").write_text(json.dumps(content))


@pytest.fixture
def raw_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_ntu(Path("nturgb+d_skeletons"))
    write_small_sets(Path("small"))
    write_pickles()
    write_own_folders()
    x, y = RNG.normal(size=(3, 300, 150)).astype(np.float32), np.eye(60)[[0, 5, 59]]
    np.savez("NTU60_CS.npz", x_train=x[:2], y_train=y[:2], x_test=x[2:], y_test=y[2:])
    return tmp_path


def documented_by_readers() -> dict[str, int]:
    """Let the tests of readers write what the commands read; return the clips of each store."""
    sizes: dict[str, int] = {}
    for file in sorted((ROOT / "tests" / "data" / "readers").glob("test_*.py")):
        module = importlib.import_module(f"tests.data.readers.{file.stem}")
        sizes |= module.documented() if hasattr(module, "documented") else {}
    return sizes


def test_commands_run_one_after_another(raw_files: Path) -> None:
    from_readers = documented_by_readers()
    lines = [line for block in blocks(DATA, "sh") for line in block.splitlines()]
    assert len(lines) >= 20
    short = {**SMALL, "optim.length": 2, "optim.batch-size": 2}
    for line in lines:
        words = shlex.split(line)
        if MOCAP & set(words):
            continue
        run_documented([*words, *(flags(short) if words[2] == "sjepa_fast.train" else ())])
    exec(blocks(DATA, "python")[1], {})
    assert Path("my_clips.png").read_bytes().startswith(b"\x89PNG")
    stores = sorted(path.name for path in (raw_files / "stores").iterdir() if path.is_dir())
    sizes = {name: len(open_store(raw_files / "stores" / name)) for name in stores}
    assert sizes == {
        "bandai_namco": 4,
        "coco": 3,
        "florence3d": 4,
        "mediapipe": 3,
        "msr_action3d": 4,
        "my_clips": 3,
        "ntu120": 3,
        "ntu60": 2,
        "ntu60_cs": 3,
        "ntu60_hrnet": 2,
        "ntu60_pyskl": 2,
        "nucla": 4,
        "openpose": 3,
        "pool": 24,
        "sbu": 4,
        "stick_clips": 3,
        "ui_prmd": 4,
        "unlabelled": 5,
        "utkinect": 4,
        **from_readers,
    }
    (result,) = (raw_files / "runs/pool/results").glob("linear-target-joint-nucla-xview.json")
    assert json.loads(result.read_text())["trained_on"]["store"] == "pool"
    listed = (raw_files / "stores" / "ntu60.skipped.txt").read_text()
    assert listed == "S001C003P002R001A100\taction 100 is not one of 60\n"
    with np.load(raw_files / "exported_CS.npz") as file:
        assert file["x_train"].shape == (1, 300, 150)


@pytest.mark.parametrize(("kind", "package"), [("bvh", "pybvh"), ("c3d", "c3d")])
def test_commands_of_motion_capture_run(raw_files: Path, kind: str, package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (extra mocap)")
    if kind == "c3d":
        for clip in CLIPS:
            write_c3d(raw_files / "c3d_clips" / f"{clip}.c3d", upright() * 1000)
    lines = [shlex.split(line) for block in blocks(DATA, "sh") for line in block.splitlines()]
    (words,) = [words for words in lines if f"{kind}_clips" in words]
    run_documented(words)
    assert len(open_store(raw_files / "stores" / kind)) == 3


def test_every_reader_has_a_command() -> None:
    lines = [shlex.split(line) for block in blocks(DATA, "sh") for line in block.splitlines()]
    assert {words[3] for words in lines if words[2] == "sjepa_fast.prepare"} == {
        *READERS,
        "merge",
    }


def test_the_named_layouts_are_all_there_are() -> None:
    text = (ROOT / DATA).read_text()
    (line,) = re.findall(r"Known layouts: ([^.]*)\.", text)
    assert re.findall(r"`(\w+)`", line) == [layout.name for layout in LAYOUTS]
