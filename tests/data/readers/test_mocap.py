"""BVH and C3D files, which the tests write, against forward kinematics by hand."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sjepa_fast import extras
from sjepa_fast.data.readers import mocap
from sjepa_fast.data.readers.generic import open_generic
from sjepa_fast.data.store import Store, open_store
from sjepa_fast.errors import InputError
from sjepa_fast.joint_map import body_part, map_joints
from sjepa_fast.prepare import PrepareConfig, main, prepare
from sjepa_fast.skeletons import NTU25, SkeletonLayout
from tests.tiny import call

RNG = np.random.default_rng(0)
needs_bvh = pytest.mark.skipif(
    importlib.util.find_spec("pybvh") is None, reason="pybvh is not installed (extra mocap)"
)
needs_c3d = pytest.mark.skipif(
    importlib.util.find_spec("c3d") is None, reason="c3d is not installed (extra mocap)"
)
# Name, parent and offset in centimetres; a collar bone is called shoulder, as is usual.
JOINTS = (
    ("Hips", -1, (0, 0, 0)),
    ("Spine", 0, (0, 12, 0)),
    ("Spine1", 1, (0, 14, -2)),
    ("Neck", 2, (0, 20, 0)),
    ("Head", 3, (0, 10, 2)),
    ("LeftShoulder", 2, (4, 15, 0)),
    ("LeftArm", 5, (12, 0, 0)),
    ("LeftForeArm", 6, (27, 0, 0)),
    ("LeftHand", 7, (24, 0, 0)),
    ("RightShoulder", 2, (-4, 15, 0)),
    ("RightArm", 9, (-12, 0, 0)),
    ("RightForeArm", 10, (-27, 0, 0)),
    ("RightHand", 11, (-24, 0, 0)),
    ("LeftUpLeg", 0, (9, -2, 0)),
    ("LeftLeg", 13, (0, -42, 0)),
    ("LeftFoot", 14, (0, -41, -2)),
    ("LeftToeBase", 15, (0, -4, 14)),
    ("RightUpLeg", 0, (-9, -2, 0)),
    ("RightLeg", 17, (0, -42, 0)),
    ("RightFoot", 18, (0, -41, -2)),
    ("RightToeBase", 19, (0, -4, 14)),
)
NAMES = tuple(name for name, _, _ in JOINTS)


def bvh_text(root_T3: NDArray[np.float64], angles_TV3: NDArray[np.float64], scale: float) -> str:
    """A BVH file; angles in degrees, in the order Z, X, Y of the channels."""
    lines = ["HIERARCHY"]

    def write(index: int, depth: int) -> None:
        name, parent, offset = JOINTS[index]
        pad = "\t" * depth
        channels = "3 Zrotation Xrotation Yrotation"
        if parent < 0:
            channels = "6 Xposition Yposition Zposition Zrotation Xrotation Yrotation"
        lines.append(f"{pad}{'ROOT' if parent < 0 else 'JOINT'} {name}")
        lines.append(f"{pad}{{")
        lines.append(f"{pad}\tOFFSET {' '.join(f'{scale * x:.6f}' for x in offset)}")
        lines.append(f"{pad}\tCHANNELS {channels}")
        children = [child for child, joint in enumerate(JOINTS) if joint[1] == index]
        for child in children:
            write(child, depth + 1)
        if not children:
            lines.extend([f"{pad}\tEnd Site", f"{pad}\t{{", f"{pad}\t\tOFFSET 0 5 0", f"{pad}\t}}"])
        lines.append(f"{pad}}}")

    write(0, 0)
    lines += ["MOTION", f"Frames: {len(root_T3)}", "Frame Time: 0.033333"]
    for root, angles in zip(root_T3, angles_TV3, strict=True):
        lines.append(" ".join(f"{x:.6f}" for x in [*(scale * root), *angles.ravel()]))
    return "\n".join(lines) + "\n"


def turn(axis: int, degrees: float) -> NDArray[np.float64]:
    a, (i, j) = np.deg2rad(degrees), [k for k in range(3) if k != axis]
    matrix = np.eye(3)
    sign = -1 if axis == 1 else 1
    matrix[i, i] = matrix[j, j] = np.cos(a)
    matrix[i, j], matrix[j, i] = -sign * np.sin(a), sign * np.sin(a)
    return matrix


def by_hand(root_T3: NDArray[np.float64], angles_TV3: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positions in centimetres: a child is its parent's place plus the turned offset."""
    places = np.zeros((len(root_T3), len(JOINTS), 3))
    for t, (root, angles) in enumerate(zip(root_T3, angles_TV3, strict=True)):
        turned: list[NDArray[np.float64]] = []
        for index, (_, parent, offset) in enumerate(JOINTS):
            z, x, y = angles[index]
            own = turn(2, z) @ turn(0, x) @ turn(1, y)
            before = turned[parent] if parent >= 0 else np.eye(3)
            origin = places[t, parent] if parent >= 0 else root
            places[t, index] = origin + before @ np.array(offset, dtype=float)
            turned.append(before @ own)
    return places


def motion(frames: int = 7) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    root = np.array([10.0, 95.0, -30.0]) + RNG.normal(size=(frames, 3))
    return root, RNG.uniform(-40, 40, size=(frames, len(JOINTS), 3))


def made(raw: Path, **options: str) -> Store:
    out = raw.with_name("out")
    prepare(dataclasses.replace(PrepareConfig("generic", raw, out, overwrite=True), **options))
    return open_store(out)


@needs_bvh
@pytest.mark.parametrize(("scale", "note"), [(1.0, "centimetres"), (10.0, "millimetres")])
def test_bvh_positions_are_those_of_forward_kinematics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scale: float, note: str
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    moves = [motion(), motion(4)]
    for name, move in zip("ab", moves, strict=True):
        (raw / f"{name}.bvh").write_text(bvh_text(*move, scale))
    store = made(raw)
    assert note in capsys.readouterr().out
    for i, move in enumerate(moves):
        np.testing.assert_allclose(store.clip(i)[0], by_hand(*move) / 100, atol=2e-6)
    assert store.names.tolist() == ["a", "b"] and store.skipped == ()


@needs_bvh
def test_the_layout_is_that_of_the_hierarchy(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "a.bvh").write_text(bvh_text(*motion(), 1.0))
    layout = made(raw).layout
    assert layout.joints == NAMES and layout.name == "raw"
    assert layout.parents == tuple(max(parent, 0) for _, parent, _ in JOINTS)
    named = {field: getattr(layout, field) for field in ("center", "spine_top")}
    assert {field: NAMES[joint] for field, joint in named.items()} == {
        "center": "Hips",
        "spine_top": "Spine1",
    }
    assert [NAMES[joint] for joint in layout.shoulders] == ["LeftArm", "RightArm"]
    assert [NAMES[joint] for joint in layout.hips] == ["LeftUpLeg", "RightUpLeg"]
    assert len(layout.swaps) == 8
    for left, right in layout.swaps:
        assert NAMES[right] == NAMES[left].replace("Left", "Right")
    # An encoder that was trained on NTU's joints reads it.
    rows = dict(zip(NAMES, map_joints(NTU25, layout), strict=True))
    found = {joint: NTU25.joints[rows[joint][0]] for joint in ("Hips", "LeftForeArm", "RightLeg")}
    assert found == {
        "Hips": "spine_base",
        "LeftForeArm": "elbow_left",
        "RightLeg": "knee_right",
    }


@needs_bvh
def test_a_layout_of_ones_own_takes_joints_by_name(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    move = motion()
    (raw / "a.bvh").write_text(bvh_text(*move, 1.0))
    stick = SkeletonLayout(
        "stick",
        ("Hips", "Spine1", "LeftArm", "RightArm", "LeftUpLeg", "RightUpLeg"),
        (0, 0, 1, 1, 0, 0),
        ((2, 3), (4, 5)),
        0,
        1,
        (2, 3),
        (4, 5),
    )
    (raw / "layout.json").write_text(json.dumps(stick.to_dict()))
    store = made(raw)
    wanted = by_hand(*move)[:, [NAMES.index(joint) for joint in stick.joints]] / 100
    np.testing.assert_allclose(store.clip(0)[0], wanted, atol=2e-6)
    other = dataclasses.replace(stick, joints=("Hips", "Chest", *stick.joints[2:]))
    (raw / "layout.json").write_text(json.dumps(other.to_dict()))
    with pytest.raises(InputError, match="has no Chest; it has Hips, Spine"):
        made(raw)


@needs_bvh
def test_bad_bvh_files_are_skipped_with_the_reason(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    good = bvh_text(*motion(), 1.0)
    last = good.splitlines()[-1]
    for name, text in {
        "aaa": "HIERARCHY\nROOT Hips\n",
        "cut": good[: good.rindex(last) + 30],
        "empty": "",
        "good": good,
        "nan": good.replace(last.split()[0], "nan"),
        "other": good.replace("Spine1", "Chest"),
        "words": good.replace(last, "x " * 10),
        "wide": "JOINT x\n" * 3000,
        "six": good.replace("3 Zrot", "6 Xposition Yposition Zposition Zrot", 1),
    }.items():
        (raw / f"{name}.bvh").write_text(text)
    os.mkfifo(raw / "fifo.bvh")
    store = made(raw)
    assert store.names.tolist() == ["good"]
    reasons = dict(store.skipped)
    assert set(reasons) == {"aaa", "cut", "empty", "fifo", "nan", "other", "six", "wide", "words"}
    for name, words in {
        "cut": "is refused by pybvh",
        "fifo": "no regular file",
        "nan": "NaN",
        "other": "has no Spine1",
        "six": "position channels on non-root joints",
        "wide": "more than 1024 joints",
    }.items():
        assert words in reasons[name], (name, reasons[name])


@needs_bvh
def test_names_that_say_nothing_ask_for_a_layout(tmp_path: Path) -> None:
    text = bvh_text(*motion(), 1.0)
    for joint in NAMES:
        text = text.replace(f" {joint}\n", f" j{NAMES.index(joint)}\n")
    (tmp_path / "a.bvh").write_text(text)
    with pytest.raises(InputError, match=r"named as its left and right hip.*layout\.json"):
        open_generic(tmp_path)


MARKERS = ("LASI", "RASI", "C7", "LSHO", "RSHO", "SACR")
PELVIS = SkeletonLayout(
    "pelvis",
    ("SACR", "C7", "LSHO", "RSHO", "LASI", "RASI"),
    (0, 0, 1, 1, 0, 0),
    ((2, 3), (4, 5)),
    0,
    1,
    (2, 3),
    (4, 5),
)


def write_c3d(
    path: Path, points_TK3: NDArray[np.float64], unit: str = "mm", screen: str = ""
) -> None:
    import c3d

    writer = c3d.Writer(point_rate=100, point_units=unit.ljust(4))
    writer.set_point_labels([f"Subject:{name}" for name in MARKERS])
    if screen:
        writer.set_screen_axis("+X", screen)
    for points in points_TK3:
        rows = np.zeros((len(points), 5), np.float32)
        rows[:, :3] = points
        rows[np.isnan(points).any(axis=1), 3:] = -1
        writer.add_frames([(rows, np.array([[]]))])
    with path.open("wb") as file, warnings.catch_warnings():
        # It warns of the analog channels that there are not.
        warnings.simplefilter("ignore")
        writer.write(file)


def upright(frames: int = 6) -> NDArray[np.float64]:
    """Markers in metres, y up."""
    pose = np.array(
        [[0.1, 1, 0.1], [-0.1, 1, 0.1], [0, 1.5, 0], [0.2, 1.4, 0], [-0.2, 1.4, 0], [0, 1, -0.1]]
    )
    return pose + RNG.normal(size=(frames, 1, 3), scale=0.05)


def z_up(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([points[..., 0], -points[..., 2], points[..., 1]], axis=-1)


@needs_c3d
@pytest.mark.parametrize(
    ("unit", "factor", "screen", "turned"),
    [("mm", 1000, "", True), ("m", 1, "+Z", True), ("cm", 100, "+Y", False)],
    ids=["mm", "m, z up", "cm, y up"],
)
def test_c3d_markers_become_joints_by_name(
    tmp_path: Path, unit: str, factor: int, screen: str, turned: bool
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "layout.json").write_text(json.dumps(PELVIS.to_dict()))
    points = upright()
    write_c3d(raw / "a.c3d", (z_up(points) if turned else points) * factor, unit, screen)
    store = made(raw)
    order = [MARKERS.index(joint) for joint in PELVIS.joints]
    np.testing.assert_allclose(store.clip(0)[0], points[:, order], atol=1e-6)
    assert store.layout == PELVIS


@needs_c3d
def test_markers_out_of_sight_come_from_the_frames_around(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "layout.json").write_text(json.dumps(PELVIS.to_dict()))
    points = upright(5) * 1000
    gaps = points.copy()
    gaps[2, 0] = np.nan
    write_c3d(raw / "a.c3d", gaps, screen="+Y")
    found = made(raw).clip(0)[0][:, PELVIS.joints.index("LASI")]
    wanted = points[:, 0] / 1000
    wanted[2] = (wanted[1] + wanted[3]) / 2
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@needs_c3d
def test_bad_c3d_files_are_skipped_with_the_reason(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "layout.json").write_text(json.dumps(PELVIS.to_dict()))
    write_c3d(raw / "good.c3d", upright() * 1000)
    write_c3d(raw / "feet.c3d", upright(), "feet")
    write_c3d(raw / "side.c3d", upright() * 1000, "mm", "-Z")
    good = (raw / "good.c3d").read_bytes()
    (raw / "cut.c3d").write_bytes(good[:-512])
    (raw / "short.c3d").write_bytes(good[:100])
    (raw / "text.c3d").write_text("no C3D" * 200)
    (raw / "claims.c3d").write_bytes(good[:2] + b"\xff\xff" + good[4:])
    store = made(raw)
    assert store.names.tolist() == ["good"]
    reasons = dict(store.skipped)
    for name, words in {
        "feet": "coordinates in 'feet', not m, cm, mm",
        "side": "has -z up",
        "cut": "ends early",
        "short": "is refused by c3d",
        "text": "is refused by c3d: C3D magic",
        "claims": "is refused by c3d",
    }.items():
        assert words in reasons[name], (name, reasons[name])


@needs_c3d
def test_c3d_files_need_a_layout(tmp_path: Path) -> None:
    write_c3d(tmp_path / "a.c3d", upright() * 1000)
    with pytest.raises(InputError, match=r"has none; give --layout, or a layout\.json"):
        open_generic(tmp_path)


@pytest.mark.parametrize(("suffix", "package"), [(".bvh", "pybvh"), (".c3d", "c3d")])
def test_an_absent_package_is_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, package: str
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / f"a{suffix}").write_text("x")
    done = call(main, "generic", "--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "o"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    for words in (f"{suffix} files", package, "pip install 'sjepa-fast[mocap]'"):
        assert words in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize("up", ["y", "z"])
def test_arrays_with_z_up_are_turned(tmp_path: Path, up: str) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "layout.json").write_text(json.dumps(PELVIS.to_dict()))
    points = upright()
    np.save(raw / "a.npy", z_up(points) if up == "z" else points)
    np.testing.assert_allclose(made(raw, up=up).clip(0)[0], points, atol=1e-6)


@pytest.mark.parametrize(
    ("joint", "wanted"),
    [
        ("LeftUpLeg", ("hip", "left")),
        ("LHipJoint", ("hip", "left")),
        ("RightForeArm", ("elbow", "right")),
        ("rShldr", ("shoulder", "right")),
        ("LowerArm_L", ("elbow", "left")),
        ("mixamorig:LeftArm", ("shoulder", "left")),
        ("Spine2", ("spine", "")),
        ("hand_tip_left", ("hand_tip", "left")),
        ("LeftHandIndex1", ("", "left")),
    ],
)
def test_body_parts_by_the_names_of_mocap(joint: str, wanted: tuple[str, str]) -> None:
    assert body_part(joint) == wanted


@pytest.mark.parametrize("axis", "xyz")
def test_turns_are_rotations_that_lead_an_axis_to_y(axis: str) -> None:
    matrix = mocap.turn_up(np.eye(3), axis)
    assert matrix["xyz".index(axis)].tolist() == [0, 1, 0]
    assert np.linalg.det(matrix) == pytest.approx(1)
