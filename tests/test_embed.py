"""`python -m sjepa_fast.embed`: features and names in one file, or one line and no file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sjepa_fast
from sjepa_fast import embed
from sjepa_fast.data.store import open_store
from tests.tiny import Done, call

RNG = np.random.default_rng(0)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder of three clips of 22 joints, the layout of the model that comes with the package."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, frames in (("b", 30), ("a", 40), ("c", 25)):
        np.save(folder / f"{name}.npy", RNG.normal(size=(frames, 22, 3), scale=0.4))
    (folder / "labels.csv").write_text("name,label\n")
    return folder


def run(*words: str | Path) -> Done:
    return call(embed.main, "tiny", "--device", "cpu", *words)


def test_a_folder_becomes_rows_in_the_order_of_its_names(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.npz"
    done = run(clips, "--out", out, "--pool", "joint")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].startswith("3 clips, 1408 numbers each (joint)")
    model = sjepa_fast.load("tiny", device="cpu")
    expected = model.embed([np.load(clips / f"{name}.npy") for name in "abc"], "joint")
    with np.load(out) as found:
        assert found["names"].tolist() == ["a", "b", "c"]
        assert found["features"].dtype == np.float32
        np.testing.assert_array_equal(found["features"], expected)


def test_files_and_stores_go_together(clips: Path, store: Path, tmp_path: Path) -> None:
    """A store has its own layout; `--layout` is that of the files."""
    out, other = tmp_path / "features.npz", tmp_path / "ntu.npy"
    np.save(other, RNG.normal(size=(2, 30, 25, 3), scale=0.4))
    done = run(other, store, "--out", out, "--layout", "ntu25", "--bodies", "2")
    assert done.returncode == 0, done.stderr
    opened = open_store(store)
    model = sjepa_fast.load("tiny", device="cpu")
    with np.load(out) as found:
        assert found["names"].tolist() == ["ntu", *opened.names]
        assert found["features"].shape == (1 + len(opened), 64)
        options = {"layout": "ntu25", "bodies": 2}
        clip = model.embed(opened.clip(0), **options)  # type: ignore[arg-type]
        np.testing.assert_allclose(found["features"][1:2], clip, atol=1e-5)


def change(clips: Path, **arrays: object) -> None:
    for name, array in arrays.items():
        np.save(clips / f"{name}.npy", array)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--layout", "ntu24"], "layout: ntu24; nearest: ntu25"),
        (["--layout", "kinect20"], "22 joints, kinect20 has 20; name its layout: kinect22"),
        (["--pool", "max"], "pool: max"),
        (["--device", "tpu"], "device: tpu"),
        (["--no-such"], "--no-such: no such flag"),
    ],
)
def test_bad_flags_end_with_one_line(
    clips: Path, tmp_path: Path, words: list[str], line: str
) -> None:
    done = run(clips, "--out", tmp_path / "features.npz", *words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert line in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips"]


def test_bad_clips_end_with_one_line_that_names_the_file(clips: Path, tmp_path: Path) -> None:
    bad = {
        "millimetres by 1000": RNG.normal(size=(9, 22, 3)) * 1000,
        "NaN": np.full((9, 22, 3), np.nan),
        "shape (22, 3)": np.zeros((22, 3)),
        "shape (0, 22, 3)": np.zeros((0, 22, 3)),
        "2 coordinates": np.ones((9, 22, 2)),
        "12 joints, kinect22 has 22; pass its SkeletonLayout, or make a store": np.ones((9, 12, 3)),
    }
    for words, array in bad.items():
        change(clips, d=array)
        done = run(clips, "--out", tmp_path / "features.npz")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert words in done.stderr and "d.npy" in done.stderr
    (clips / "d.npy").write_bytes(b"\x93NUMPY\x01\x00")
    (clips / "d.npy").write_bytes(np.lib.format.MAGIC_PREFIX)
    done = run(clips, "--out", tmp_path / "features.npz")
    assert done.returncode == 2 and "d.npy is no .npy" in done.stderr
    np.save(clips / "d.npy", np.array([{}]), allow_pickle=True)
    done = run(clips, "--out", tmp_path / "features.npz")
    assert done.returncode == 2 and "need allow_pickle" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips"], "nothing half-written"


def test_bad_places_end_with_one_line(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for words, line in (
        ([clips, "--out", "features.txt"], "name a .npz file"),
        ([clips, "--out", tmp_path / "file" / "features.npz"], "cannot be written"),
        ([clips, "--out", "/proc/features.npz"], "cannot be written"),
        ([clips, "--out", tmp_path / "nowhere" / "features.npz"], "cannot be written"),
        ([tmp_path / "empty", "--out", tmp_path / "f.npz"], "no .npy file and no store"),
        ([tmp_path / "no.npy", "--out", tmp_path / "f.npz"], "No such file"),
        (["--out", tmp_path / "f.npz"], "clips: none"),
    ):
        done = run(*words)  # type: ignore[arg-type]
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert line in done.stderr
    done = call(embed.main, tmp_path / "nowhere", clips, "--out", tmp_path / "f.npz")
    assert done.returncode == 2 and "does not exist" in done.stderr
    assert not (tmp_path / "f.npz").exists()


def test_clips_of_two_widths_are_not_put_into_one_table(
    clips: Path, store: Path, tmp_path: Path
) -> None:
    words = ("--out", tmp_path / "f.npz", "--pool", "joint", "--bodies", "2")
    done = run(clips, store, *words)
    assert done.returncode == 2 and "rows of 1408 and 1600" in done.stderr
