"""What is no file, or a file that lies: every reader names it and goes on, or refuses its set."""

import csv
import json
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sjepa_fast.data import readers
from sjepa_fast.data.clip_table import ClipTable
from sjepa_fast.data.journal import Journal
from sjepa_fast.data.readers.ctrgcn_npz import open_ctrgcn
from sjepa_fast.data.readers.generic import open_generic
from sjepa_fast.data.readers.image_pose import MOST_COMPARED, Person, link_bodies
from sjepa_fast.data.readers.ntu import open_ntu
from sjepa_fast.data.readers.pku import open_pku, parse_cut
from sjepa_fast.data.readers.pyskl import open_pyskl
from sjepa_fast.data.readers.ragged_npz import open_ragged
from sjepa_fast.data.readers.record import MAX_NUMBERS, Source
from sjepa_fast.data.safe_files import find_files, read_bytes
from sjepa_fast.data.store import open_store
from sjepa_fast.errors import InputError
from sjepa_fast.opening import Unreadable
from sjepa_fast.prepare import PrepareConfig, prepare
from sjepa_fast.skeletons import NTU25
from tests.data.readers.test_files import annotation, write_nucla
from tests.data.readers.test_ntu import person, skeleton_text
from tests.data.readers.test_pku import cut_text, recording, write

CLIP = np.random.default_rng(0).normal(size=(14, 25, 3))
ODD = ("folder", "fifo", "loop", "device", "dangling")


def put_odd(kind: str, path: Path) -> None:
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        target = {"loop": path, "device": "/dev/zero", "dangling": path.with_name("none")}[kind]
        path.symlink_to(target)


def set_of(kind: str, raw: Path) -> tuple[Path, str]:
    """Write two clips for a reader; return the file of the second, and the layout."""
    raw.mkdir(exist_ok=True)
    if kind == "ntu60":
        for name in ("S001C001P001R001A001", "S001C001P001R001A002"):
            (raw / f"{name}.skeleton").write_text(skeleton_text([{"7": j} for j in person(20)]))
        return raw / "S001C001P001R001A002.skeleton", ""
    if kind in ("pku1", "label"):
        for stem in ("0002-L", "0003-L"):
            write(raw, stem, recording(30), "1,0,9,2\n")
        return raw / {"pku1": "skeleton", "label": "Label_PKU"}[kind] / "0003-L.txt", ""
    if kind == "cut":
        for name in ("F002V001C007L001", "F003V001C007L001"):
            (raw / f"{name}.skeleton").write_text(cut_text(recording(60)[45:50]))
        return raw / "F003V001C007L001.skeleton", ""
    (raw / "labels.csv").write_text("name,label\na,0\nb,1\n")
    if kind == "npy":
        for name in "ab":
            np.save(raw / f"{name}.npy", CLIP)
        return raw / "b.npy", "ntu25"
    one = {"image_id": 1, "keypoints": CLIP[0, :17].ravel().tolist()}
    (raw / "a.json").write_text(json.dumps([one]))
    if kind == "json":
        return raw / "b.json", "coco17"
    (raw / "b").mkdir()
    return raw / "b" / "1.json", "openpose18"


SETS = ("ntu60", "pku1", "label", "cut", "npy", "json", "frames")
NAMES = {"label": "pku1", "cut": "pku1", "npy": "generic", "json": "generic", "frames": "generic"}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("kind", SETS)
def test_what_is_no_regular_file_is_skipped_at_once(tmp_path: Path, kind: str, odd: str) -> None:
    file, layout = set_of(kind, tmp_path / "raw")
    put_odd(odd, file)
    request = PrepareConfig(NAMES.get(kind, kind), tmp_path / "raw", tmp_path / "out")
    if kind == "frames":
        (tmp_path / "raw" / "a.json").write_text(
            json.dumps([{"people": [{"pose_keypoints_2d": CLIP[0, :18].ravel().tolist()}]}])
        )
    prepare(PrepareConfig(**{**vars(request), "layout": layout}))
    store = open_store(tmp_path / "out")
    assert len(store) == 1 and len(store.skipped) == 1
    words = {
        "folder": "directory|neither|nobody",
        "loop": "symbolic links",
        "dangling": "No such|neither",
    }
    assert re.search(words.get(odd, "no regular file"), store.skipped[0][1])


@pytest.mark.timeout(20)
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("ctrgcn", "x.npz"),
        ("pyskl", "x.pkl"),
        ("nucla", "x.npz"),
        ("generic", "labels.csv"),
        ("generic", "layout.json"),
        ("ntu60", "missing.txt"),
    ],
)
def test_a_set_that_is_no_regular_file_is_refused_at_once(
    tmp_path: Path, name: str, file: str, odd: str
) -> None:
    raw = tmp_path / file
    missing = None
    if name == "generic":
        set_of("npy", tmp_path)
        raw = tmp_path
    elif name == "ntu60":
        set_of("ntu60", tmp_path)
        raw, missing = tmp_path, tmp_path / file
    put_odd(odd, tmp_path / file)
    with pytest.raises(InputError) as error:
        prepare(PrepareConfig(name, raw, tmp_path / "out", missing=missing))
    assert file.split(".", maxsplit=1)[0] in str(error.value)
    assert not (tmp_path / "out").exists()


def test_files_that_vanish_after_they_were_listed(tmp_path: Path) -> None:
    for kind in ("ntu60", "pku1", "cut", "npy", "json"):
        file, layout = set_of(kind, tmp_path / kind)
        name = NAMES.get(kind, kind)
        source: Source = {
            "ntu60": lambda raw: open_ntu("ntu60", raw),
            "pku1": lambda raw: open_pku("pku1", raw),
            "generic": lambda raw, layout=layout: open_generic(raw, layout=layout),
        }[name](tmp_path / kind)
        file.unlink(missing_ok=True)
        records = list(source.records())
        assert [r.clip_MTVC is None for r in records] == [False, True]
        assert "No such file" in records[1].reason or "none of" in records[1].reason


def test_folders_that_cannot_be_listed_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_of("ntu60", tmp_path)
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(path: str) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    source = open_ntu("ntu60", tmp_path)
    records = list(source.records())
    assert source.count == len(records) == 3
    assert "closed" in records[2].name and "Permission denied" in records[2].reason
    for start in range(4):
        assert [r.name for r in source.records(start)] == [r.name for r in records[start:]]


def test_links_in_a_ring_and_deep_folders_are_no_trap(tmp_path: Path) -> None:
    file, _ = set_of("ntu60", tmp_path)
    (tmp_path / "again").symlink_to(tmp_path)
    deep = tmp_path
    for _ in range(150):
        deep /= "d"
    deep.mkdir(parents=True)
    file.rename(deep / file.name)
    found, closed = find_files(tmp_path, ".skeleton")
    assert len(found) == 2 and closed == []


def test_names_that_are_not_utf_8_are_skipped(tmp_path: Path) -> None:
    file, _ = set_of("cut", tmp_path / "raw")
    file.rename(file.with_name(os.fsdecode(b"F\xff\x1b[2J.skeleton")))
    prepare(PrepareConfig("pku1", tmp_path / "raw", tmp_path / "out"))
    ((name, _),) = open_store(tmp_path / "out").skipped
    assert name == "F\\udcff\\x1b[2J"
    assert (tmp_path / "out.skipped.txt").read_text().startswith(name)


def test_a_file_that_grows_or_has_no_size_is_refused() -> None:
    with pytest.raises(Unreadable, match="has 0 bytes, but 1"):
        read_bytes(Path("/proc/self/status"), 100)
    with pytest.raises(Unreadable, match="null byte"):
        read_bytes(Path("a\0b"), 100)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"name,label,a b\na,0,1\n", "column 'a b'"),
        (b"name,label,../x\na,0,1\n", "column '../x'"),
        (b"name,label,split_\x1b\na,0,train\n", "column"),
        (b"name,label" + b",c" * 100 + b"\na,0\n", "102 columns"),
        (b"name,label\na," + b"x" * 200_000 + b"\n", "field larger"),
        (b"name,label\na," + b"x" * 300 + b"\n", "printable"),
        (b"name,label\na,\x1b[2J\n", "printable"),
        (b"name,label\na,\xff\n", "no utf-8"),
        (b"name,label,subject\na,0," + b"9" * 5000 + b"\n", "whole numbers"),
        (b"name,label\na," + b"9" * 5000 + b"\n", "printable"),
    ],
)
def test_tables_beyond_their_limits_are_refused(tmp_path: Path, text: bytes, words: str) -> None:
    (tmp_path / "labels.csv").write_bytes(text)
    np.save(tmp_path / "a.npy", CLIP)
    with pytest.raises(InputError, match=words) as error:
        prepare(PrepareConfig("generic", tmp_path, tmp_path.with_name("out"), layout="ntu25"))
    assert len(str(error.value)) < 2500
    assert csv.field_size_limit() == 131072


def test_rows_that_name_no_file(tmp_path: Path) -> None:
    names = ["a\0b", "x" * 3000, "..", "a/../b", "a/b", "\x1b[2J", "good"]
    (tmp_path / "labels.csv").write_text("name,label\n" + "".join(f"{n},0\n" for n in names))
    np.save(tmp_path / "good.npy", CLIP)
    records = list(open_generic(tmp_path, layout="ntu25").records())
    assert [r.clip_MTVC is None for r in records] == [True] * 6 + [False]
    assert {r.reason for r in records[:6]} == {"name is no file name"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{10**9}\n1\nh\n25\n", "1000000000 frames"),
        ("-3\n", "-3 frames"),
        ("9" * 5000 + "\n", "4300"),
        ("1\n-5\nh\n25\n", "-5 bodies"),
        ("1\n1\nh\n25\n" + "1\n" * 25, "unpack"),
        ("1\n1\nh\n25\n" + "1 2\n" * 25, "unpack"),
        ("1\n1\n", "ends early"),
    ],
)
def test_cut_clips_that_claim_too_much(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_cut(text)


def test_long_clips_are_skipped_before_they_are_read(tmp_path: Path) -> None:
    frames = MAX_NUMBERS // 75 + 1
    (tmp_path / "labels.csv").write_text("name,label\na,0\nb,0\n")
    for name, count in (("a", frames), ("b", frames - 1)):
        np.save(tmp_path / f"{name}.npy", np.ones((count, 25, 3), np.float16))
    reasons = [r.reason for r in open_generic(tmp_path, layout="ntu25").records()]
    assert "more than 4194304 values" in reasons[0] and reasons[1] == ""


def test_ragged_columns_of_other_types(tmp_path: Path) -> None:
    for change, words in (
        ({"offsets": np.array([0.0, 4, 7, 12, 18])}, "offsets is float64"),
        ({"offsets": np.array([0, 7, 4, 12, 18])}, "offsets of"),
        ({"offsets": np.array([-4, 4, 7, 12, 18])}, "offsets of"),
        ({"offsets": np.array([0, 4, 2**63 + 7, 12, 18], np.uint64)}, "offsets of"),
        ({"label": np.array(["a", "b", "c", "d"])}, "label is <U1"),
        ({"label": np.array([0.5, 1, 2, 3])}, "label is float64"),
        ({"name": np.arange(4)}, "name is int64"),
        ({"name": np.array(["a", "b", "c"])}, "name is <U1"),
        ({"camera": np.full(4, np.nan)}, "camera is float64"),
        ({"camera": np.zeros((4, 2), int)}, "camera is int64"),
        ({"scale": np.ones(3)}, "scale is float64"),
        ({"scale": np.array(np.nan)}, "scale is not finite"),
        ({"scale": np.array("x")}, "scale is <U1"),
        ({"class_names": np.zeros(100_001, "U1")}, "more than 131072 clips or 4096"),
        ({"label": np.zeros(131_073, int)}, "more than 131072 clips"),
        ({"joints": np.zeros((0, 1, 20, 3), np.float32)}, "joints of"),
        ({"joints": np.zeros((18, 1, 20, 3), "U1")}, "joints are"),
        ({"joints": np.zeros((18, 1, 20, 3), bool)}, "joints are"),
    ):
        write_nucla(tmp_path / "nucla.npz", **change)
        with pytest.raises(InputError, match=words):
            list(open_ragged("nucla", tmp_path).records())


def test_ragged_damage_is_found_while_clips_are_read(tmp_path: Path) -> None:
    write_nucla(tmp_path / "nucla.npz")
    data = bytearray((tmp_path / "nucla.npz").read_bytes())
    data[600] ^= 1
    (tmp_path / "nucla.npz").write_bytes(data)
    with pytest.raises(InputError, match="joints is damaged"):
        prepare(PrepareConfig("nucla", tmp_path, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_pyskl_annotations_that_do_not_fit_are_skipped(tmp_path: Path) -> None:
    good = annotation("good", 0, np.ones((1, 5, 25, 3)))
    bad = [
        {},
        3,
        None,
        {**good, "frame_dir": ("x",)},
        {**good, "label": "x"},
        {**good, "label": 1.5},
        {**good, "label": 10**30},
        {**good, "keypoint": np.ones((1, 5, 25, 3)).tolist()},
        {**good, "keypoint": "x"},
    ]
    content = {"split": {}, "annotations": [*bad, good]}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
    source = open_pyskl(tmp_path / "x.pkl")
    records = list(source.records())
    assert source.count == 10 and [r.clip_MTVC is None for r in records] == [True] * 9 + [False]
    assert [r.reason for r in records[:3]] == ["has no frame_dir"] * 3
    assert all(r.reason for r in records[:9])
    for split in (None, {"../x": []}, {"a": 3}, {1: []}, {f"a{i}": [] for i in range(101)}):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps({**content, "split": split}))
        with pytest.raises(InputError, match="split"):
            open_pyskl(tmp_path / "x.pkl")


def test_one_array_for_all_annotations_is_refused(tmp_path: Path) -> None:
    one = annotation("a", 0, np.ones((1, 10_000, 25, 3), np.float32))
    content = {"split": {}, "annotations": [{**one, "frame_dir": f"{i}"} for i in range(30)]}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match="write every array once"):
        open_pyskl(tmp_path / "x.pkl")


def test_clips_of_too_many_bodies_are_skipped(tmp_path: Path) -> None:
    for layout, shape in (("ntu25", (65, 3, 25, 3)), ("coco17", (65, 3, 17, 2))):
        (tmp_path / "labels.csv").write_text("name,label\na,0\n")
        np.save(tmp_path / "a.npy", np.random.default_rng(0).uniform(1, 9, size=shape))
        with pytest.raises(InputError, match="65 bodies"):
            prepare(PrepareConfig("generic", tmp_path, tmp_path / "out", layout=layout))


@pytest.mark.timeout(30)
def test_people_who_cannot_be_followed_in_time(tmp_path: Path) -> None:
    pose = np.ones((17, 4))
    far = [pose + np.array([1000.0 * k, 0, 0, 0]) for k in range(3000)]
    frames = [[Person(one) for one in far[:1500]], [Person(one) for one in far[1500:]]]
    with pytest.raises(Unreadable, match=f"more than {MOST_COMPARED} people"):
        link_bodies(frames)


@pytest.mark.parametrize("name", ["image_id", "track_id"])
def test_numbers_that_collide_as_keys_are_refused(tmp_path: Path, name: str) -> None:
    one = {"image_id": 1, "keypoints": [1.0] * 51, "track_id": 1, name: 2**61 - 1}
    (tmp_path / "a.json").write_text(json.dumps([one]))
    (tmp_path / "labels.csv").write_text("name,label\na,0\n")
    (record,) = open_generic(tmp_path, layout="coco17").records()
    assert "beyond 2**60" in record.reason


def test_what_becomes_infinite_is_skipped_by_name(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("name,label\na,0\nb,0\nc,0\n")
    for name, value in (("a", 1.0), ("b", 1e39), ("c", 1e5)):
        np.save(tmp_path / f"{name}.npy", np.full((3, 25, 3), value))
    out = tmp_path.with_name(f"{tmp_path.name}-out")
    for dtype in ("float32", "float16"):
        request = PrepareConfig("generic", tmp_path, out, layout="ntu25", overwrite=True)
        prepare(PrepareConfig(**{**vars(request), "dtype": dtype}))
        store = open_store(out)
        assert np.isfinite(store.joints).all()
        reasons = dict(store.skipped)
        assert "b has NaN or infinite joints" in reasons["b"]
        assert ("c has values beyond float16" in reasons.get("c", "")) == (dtype == "float16")


def test_readers_open_files_in_one_way() -> None:
    folder = Path(readers.__file__).parent
    other = re.compile(
        r"np\.load\(|\.read_(text|bytes)\(|\bopen\(|json\.loads?\(|\.(r?glob|iterdir)\("
    )
    texts = {path.name: path.read_text() for path in folder.glob("*.py")}
    assert len(texts) > 10
    assert {name: found[0] for name, text in texts.items() if (found := other.search(text))} == {}


def test_label_files_without_end_are_named(tmp_path: Path) -> None:
    for stem, text in (("0002-L", "1,0,9,2\n" * 10_001), ("0003-L", "x" * 5000 + "\n")):
        write(tmp_path, stem, recording(30), text)
    first, second = open_pku("pku1", tmp_path).records()
    assert "more than 10000 lines" in first.reason
    assert "label line 'xxx" in second.reason and len(second.reason) < 100


def test_a_split_name_is_checked_before_the_file_is_read(tmp_path: Path) -> None:
    for name in ("../x", "", "a b", "\x1b"):
        with pytest.raises(InputError, match="split_name"):
            open_ctrgcn(tmp_path / "absent.npz", split_name=name)


def journal_lines() -> list[bytes]:
    good = [b'["a", 1, 3, 0, {"x": 1}]']
    bad = [
        b"[1, 2]",
        b"{}",
        b'["b", 1, 3, 0]',
        b'["b", -1, -3, 0, {}]',
        b'["a", 1, 3, 0, {"x": 1}]',
    ]
    bad += [b'["b", 1, 3, 7, {"x": 1}]', b'["b", 1, 3, 0, {"y": 1}]', b'["b", 1, 3, 0, [1]]']
    bad += [b'["b", 1.5, 3, 0, {"x": 1}]', b"[" * 9999, b"\xff", b'["b", 1, 9999, 0, {"x": 1}]']
    return [b"\n".join([b'{"job": "j"}', *good, line, *good, b""]) for line in bad]


@pytest.mark.parametrize("data", journal_lines())
def test_a_damaged_journal_is_replayed_up_to_the_damage(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "journal.jsonl").write_bytes(data)
    journal, table = Journal(tmp_path, "j"), ClipTable(NTU25, ("a",), "float32")
    assert journal.replay(table, 100) == 1 and list(table.names) == ["a"]
    journal.close()
