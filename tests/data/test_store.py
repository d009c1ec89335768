"""The packed store: bit-exact round trips, and every kind of damage named."""

import json
from pathlib import Path

import numpy as np
import pytest

from sjepa_fast.data.store import MANIFEST, Store, open_store
from sjepa_fast.data.store_writer import StoreWriter
from sjepa_fast.errors import InputError
from sjepa_fast.skeletons import KINECT20

RNG = np.random.default_rng(0)
CLIPS = [RNG.normal(size=(m, t, 20, 3)).astype(np.float32) for m, t in ((1, 5), (2, 9), (1, 1))]


def write(out: Path, dtype: str = "float32") -> Store:
    with StoreWriter(out, "tiny", KINECT20, ("a", "b"), dtype=dtype) as writer:
        for i, clip in enumerate(CLIPS):
            writer.add(f"clip{i}", clip, i % 2, {"subject": i + 1})
        writer.skip("broken", "NaN")
        return writer.finish({"xsub": np.array([1, 2, 0], dtype=np.int8)})


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_round_trip_is_bit_exact(tmp_path: Path, dtype: str) -> None:
    write(tmp_path / "s", dtype)
    store = open_store(tmp_path / "s")
    assert len(store) == 3 and store.max_bodies == 2 and store.layout == KINECT20
    for i, clip in enumerate(CLIPS):
        assert np.array_equal(store.clip(i), clip.astype(dtype))
    assert store.names.tolist() == ["clip0", "clip1", "clip2"]
    assert store.labels.tolist() == [0, 1, 0] and store.meta["subject"].tolist() == [1, 2, 3]
    assert store.ids("xsub", "train").tolist() == [0] and store.ids("xsub", "test").tolist() == [1]
    assert store.skipped == (("broken", "NaN"),)
    assert isinstance(store.joints, np.memmap)


def test_rows_are_body_major(tmp_path: Path) -> None:
    store = write(tmp_path / "s")
    first = store.offsets[1]
    assert np.array_equal(store.joints[first + 9 + 4], CLIPS[1][1, 4])


def test_fingerprint_names_the_content(tmp_path: Path) -> None:
    same = [write(tmp_path / n).fingerprint for n in ("a", "b")]
    assert same[0] == same[1] == open_store(tmp_path / "a").fingerprint
    assert write(tmp_path / "c", "float16").fingerprint != same[0]


def damage(root: Path, kind: str) -> None:
    joints = root / "joints.npy"
    if kind == "truncated":
        joints.write_bytes(joints.read_bytes()[:-8])
    elif kind == "altered":
        data = bytearray(joints.read_bytes())
        data[-5] ^= 1
        joints.write_bytes(bytes(data))
    elif kind == "missing file":
        (root / "labels.npy").unlink()
    elif kind == "no manifest":
        (root / MANIFEST).unlink()
    elif kind == "broken manifest":
        (root / MANIFEST).write_text("{")
    elif kind == "altered manifest":
        text = (root / MANIFEST).read_text()
        (root / MANIFEST).write_text(text.replace('"tiny"', '"tidy"'))
    elif kind == "emptied manifest":
        manifest = json.loads((root / MANIFEST).read_text())
        del manifest["files"]["joints.npy"], manifest["checksum"]
        (root / MANIFEST).write_text(json.dumps(manifest))
    else:
        manifest = json.loads((root / MANIFEST).read_text())
        manifest["version"] = 99
        (root / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("truncated", "joints.npy has"),
        ("altered", "checksum"),
        ("missing file", r"labels\.npy is missing"),
        ("no manifest", "has no store"),
        ("broken manifest", "unreadable"),
        ("altered manifest", "store.json does not match"),
        ("emptied manifest", "lists no joints"),
        ("other version", "version 99"),
    ],
)
def test_damage_is_named(tmp_path: Path, kind: str, words: str) -> None:
    write(tmp_path / "s")
    damage(tmp_path / "s", kind)
    with pytest.raises(InputError, match=words) as error:
        open_store(tmp_path / "s")
    assert error.value.argument == "data.root" and "prepare" in str(error.value)


def test_unverified_open_does_not_read_the_joints(tmp_path: Path) -> None:
    write(tmp_path / "s")
    damage(tmp_path / "s", "altered")
    assert len(open_store(tmp_path / "s", verify=False)) == 3


@pytest.mark.parametrize(
    ("clip", "label", "words"),
    [
        (np.zeros((1, 4, 25, 3)), 0, "shape"),
        (np.zeros((1, 0, 20, 3)), 0, "shape"),
        (np.full((1, 4, 20, 3), np.nan), 0, "NaN"),
        (np.zeros((1, 4, 20, 3)), 2, "label"),
    ],
)
def test_bad_clips_are_refused_and_nothing_is_left(
    tmp_path: Path, clip: np.ndarray, label: int, words: str
) -> None:
    with (
        pytest.raises(InputError, match=words),
        StoreWriter(tmp_path / "s", "tiny", KINECT20, ("a", "b")) as writer,
    ):
        writer.add("bad", clip, label, {})
    assert list(tmp_path.iterdir()) == []


def test_duplicate_names_and_changing_columns_are_refused(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", "tiny", KINECT20, ("a",)) as writer:
        writer.add("x", CLIPS[0], 0, {"subject": 1})
        with pytest.raises(InputError, match="twice"):
            writer.add("x", CLIPS[0], 0, {"subject": 1})
        with pytest.raises(InputError, match="meta"):
            writer.add("y", CLIPS[0], 0, {"camera": 1})


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        StoreWriter(tmp_path / "s", "tiny", KINECT20, ("a",)) as writer,
    ):
        writer.add("x", CLIPS[0], 0, {})
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_overwrite_replaces_a_store_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "s")
    with pytest.raises(InputError, match="exists"):
        StoreWriter(tmp_path / "s", "tiny", KINECT20, ("a",))
    (tmp_path / "home").mkdir()
    with pytest.raises(InputError, match="exists"):
        StoreWriter(tmp_path / "home", "tiny", KINECT20, ("a",), overwrite=True)
    with StoreWriter(tmp_path / "s", "new", KINECT20, ("a",), overwrite=True) as writer:
        writer.add("x", CLIPS[0], 0, {})
        writer.finish({})
    assert open_store(tmp_path / "s").name == "new"


def test_unknown_split_and_part(tmp_path: Path) -> None:
    store = write(tmp_path / "s")
    with pytest.raises(InputError, match="xsub"):
        store.ids("xview", "train")
    with pytest.raises(InputError, match="train or test"):
        store.ids("xsub", "val")


def test_an_unfinished_folder_is_no_store(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", "tiny", KINECT20, ("a",)) as writer:
        writer.add("x", CLIPS[0], 0, {})
        with pytest.raises(InputError, match="has no store"):
            open_store(writer.folder)


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        ({"xsub": np.array([1, 2])}, "xsub has shape"),
        ({"xsub": np.array([3])}, "1 train, 2 test"),
        ({"../xsub": np.array([1])}, "name splits"),
    ],
)
def test_splits_that_do_not_fit_are_refused(
    tmp_path: Path, splits: dict[str, np.ndarray], words: str
) -> None:
    with (
        pytest.raises(InputError, match=words),
        StoreWriter(tmp_path / "s", "tiny", KINECT20, ("a",)) as writer,
    ):
        writer.add("x", CLIPS[0], 0, {})
        writer.finish(splits)
    assert list(tmp_path.iterdir()) == []


def test_values_beyond_float16_are_refused_not_made_infinite(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", "tiny", KINECT20, ("a",), dtype="float16") as writer:
        with pytest.raises(InputError, match="float16"):
            writer.add("x", np.full((1, 2, 20, 3), 1e5, dtype=np.float32), 0, {})
        writer.add("x", np.full((1, 2, 20, 3), 6e4, dtype=np.float32), 0, {})
        assert np.isfinite(writer.finish({}).joints).all()


def resident_mib() -> float:
    text = Path("/proc/self/status").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024


def test_a_resumed_store_has_the_reasons_of_an_uninterrupted_one(tmp_path: Path) -> None:
    def open_writer() -> StoreWriter:
        return StoreWriter(tmp_path / "s", "a", KINECT20, ("a",), job="resumable")

    with pytest.raises(KeyboardInterrupt), open_writer() as writer:
        writer.skip("x" * 1000, "why " * 1000)
        writer.skip("y\x1b", "")
        skipped = writer.table.skipped
        raise KeyboardInterrupt
    with open_writer() as writer:
        assert writer.done == 2 and writer.table.skipped == skipped


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("job", ["", "resumable"])
def test_memory_does_not_grow_with_the_store(tmp_path: Path, job: str) -> None:
    clip = np.ones((2, 300, 20, 3), dtype=np.float32)
    with StoreWriter(tmp_path / "s", "big", KINECT20, ("a",), job=job) as writer:
        for i in range(40):
            writer.add(f"clip{i}", clip, 0, {"subject": i})
        before = resident_mib()
        for i in range(40, 1000):
            writer.add(f"clip{i}", clip, 0, {"subject": i})
        grown = resident_mib() - before
        store = writer.finish({})
        finished = resident_mib() - before
    assert store.joints.nbytes > 130 * 2**20
    assert grown < 16, "clips are not kept"
    assert finished < 32, "nor is the store read whole to finish it"
