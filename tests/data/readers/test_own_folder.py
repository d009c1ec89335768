"""A folder without labels.csv, labels that are missing, units of all kinds, and drawn splits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sjepa_fast.data.clip_table import NO_LABEL, ClipTable
from sjepa_fast.data.readers.drawn_split import draw_split
from sjepa_fast.data.readers.generic import open_generic
from sjepa_fast.data.store import Store, open_store
from sjepa_fast.errors import InputError
from sjepa_fast.prepare import PrepareConfig, main, prepare
from sjepa_fast.skeletons import H36M17
from tests.tiny import call

RNG = np.random.default_rng(0)


def people(count: int, frames: int = 6) -> NDArray[np.float32]:
    """Standing people of h36m17, in metres: about 1.8 m tall."""
    pose = RNG.uniform(-0.2, 0.2, size=(count, frames, 17, 3))
    pose[..., 1] += np.linspace(0, 1.6, 17)
    return pose.astype(np.float32)


def folder(raw: Path, clips: NDArray[np.generic], table: str = "") -> PrepareConfig:
    raw.mkdir()
    for i, clip in enumerate(clips):
        np.save(raw / f"c{i:02d}.npy", clip)
    if table:
        (raw / "labels.csv").write_text(table)
    return PrepareConfig("generic", raw, raw.with_name("out"), layout="h36m17")


def made(request: PrepareConfig) -> Store:
    prepare(dataclasses.replace(request, overwrite=True))
    assert request.out is not None
    return open_store(request.out)


def test_a_folder_of_arrays_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips = people(10)
    store = made(folder(tmp_path / "raw", clips))
    assert store.names.tolist() == [f"c{i:02d}" for i in range(10)]
    assert (store.labels == NO_LABEL).all() and store.class_names == () and not store.meta
    for i, clip in enumerate(clips):
        assert np.array_equal(store.clip(i)[0], clip)
    assert list(store.splits) == ["random"]
    assert np.bincount(store.splits["random"]).tolist() == [0, 8, 2]
    said = capsys.readouterr().out
    assert "10 clips, 60 frames, 0 classes, 10 without a label" in said
    flags = "--split-by random --test-share 0.2 --seed 0"
    assert f"note: the raw data have no split; one was drawn: {flags}" in said
    assert flags in (store.root / "store.json").read_text()


@pytest.mark.parametrize(
    ("cells", "labels", "classes"),
    [
        (["sit", "", "wave"], [0, NO_LABEL, 1], ("sit", "wave")),
        (["1", "", "0"], [1, NO_LABEL, 0], ("0", "1")),
        (["", "", "10"], [NO_LABEL, NO_LABEL, 10], tuple(map(str, range(11)))),
        (["", "", ""], [NO_LABEL] * 3, ()),
    ],
    ids=["words", "numbers", "one", "none"],
)
def test_an_empty_cell_is_a_missing_label(
    tmp_path: Path, cells: list[str], labels: list[int], classes: tuple[str, ...]
) -> None:
    rows = "".join(f"c{i:02d},{cell}\n" for i, cell in enumerate(cells))
    store = made(folder(tmp_path / "raw", people(3), f"name,label\n{rows}"))
    assert store.labels.tolist() == labels and store.class_names == classes
    assert len(store) == 3 and store.skipped == ()


def test_a_table_may_have_no_labels(tmp_path: Path) -> None:
    table = "name,subject,split\nc00,1,train\nc01,2,test\nc02,2,\n"
    store = made(folder(tmp_path / "raw", people(3), table))
    assert (store.labels == NO_LABEL).all() and store.meta["subject"].tolist() == [1, 2, 2]
    assert {key: codes.tolist() for key, codes in store.splits.items()} == {"default": [1, 2, 0]}


@pytest.mark.parametrize(
    ("factor", "dtype", "note"),
    [
        (1, np.float64, ""),
        (100, np.float32, "centimetres, divided by 100"),
        (1000, np.float32, "millimetres, divided by 1000"),
        (1000, np.int16, "millimetres, divided by 1000"),
        (1000, np.int64, "millimetres, divided by 1000"),
        (100, np.uint16, "centimetres, divided by 100"),
    ],
    ids=["m", "cm", "mm", "mm int16", "mm int64", "cm uint16"],
)
def test_units_are_told_by_the_size_of_the_bodies(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    factor: int,
    dtype: type[np.generic],
    note: str,
) -> None:
    clips = people(4) + 1
    request = folder(tmp_path / "raw", (clips * factor).astype(dtype))
    store = made(request)
    for i, clip in enumerate(clips):
        step = 0.0 if np.issubdtype(dtype, np.floating) else 1 / factor
        np.testing.assert_allclose(store.clip(i)[0], clip, atol=step + 1e-5)
    assert store.joints.dtype == np.float32
    said = capsys.readouterr().out
    assert note in said and ("divided" in said) == bool(note)
    assert store.fingerprint == made(dataclasses.replace(request, units=_named(factor))).fingerprint


def _named(factor: int) -> str:
    return {1: "m", 100: "cm", 1000: "mm"}[factor]


def test_a_unit_given_by_hand_wins(tmp_path: Path) -> None:
    # A hand of 15 cm in millimetres looks like a person in centimetres.
    hands = people(3) / 12
    request = folder(tmp_path / "raw", hands * 1000)
    assert not np.allclose(made(request).clip(0)[0], hands[0], atol=1e-4)
    store = made(dataclasses.replace(request, units="mm"))
    np.testing.assert_allclose(store.clip(0)[0], hands[0], atol=1e-6)
    assert "--units mm" in (store.root / "store.json").read_text()


@pytest.mark.parametrize("factor", [1e5, 1e-3, 1e30])
def test_sizes_that_no_unit_explains_end_the_run(tmp_path: Path, factor: float) -> None:
    request = folder(tmp_path / "raw", people(3) * np.float32(factor))
    done = call(main, "generic", "--raw", str(request.raw), "--out", "o", "--layout", "h36m17")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    for words in ("units: a body spans", "no person does in m, cm or mm", "--units mm"):
        assert words in done.stderr
    with pytest.raises(InputError, match="no usable clip"):
        prepare(dataclasses.replace(request, units="mm"))
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_clip_of_another_size_is_skipped_by_name(tmp_path: Path) -> None:
    clips = people(5)
    clips[3] *= 1000
    store = made(folder(tmp_path / "raw", clips))
    assert store.names.tolist() == ["c00", "c01", "c02", "c04"]
    ((name, reason),) = store.skipped
    assert name == "c03" and "m in a frame: no person, or another unit than --units" in reason


def test_empty_frames_and_images_do_not_decide_the_unit(tmp_path: Path) -> None:
    clips = people(2) * 1000
    clips[:, 1:] = 0
    request = folder(tmp_path / "raw", clips)
    for i in range(9):
        np.save(request.raw / f"flat{i}.npy", RNG.uniform(100, 400, size=(5, 17, 2)))
    store = made(request)
    top = store.clip(0)[0, 0, :, 1].max() - store.clip(0)[0, 0, :, 1].min()
    assert 1 < top < 3 and len(store) == 11


def table_of(labels: list[int | None], subjects: list[int]) -> ClipTable:
    classes = tuple(str(i) for i in range(50))
    table = ClipTable(H36M17, classes, "float32")
    for i, (label, subject) in enumerate(zip(labels, subjects, strict=True)):
        table.add(str(i), np.ones((1, 1, 17, 3), np.float32), label, {"subject": subject})
    return table


def test_a_random_split_has_every_class_by_its_share() -> None:
    labels = [i // 10 if i < 100 else None for i in range(120)] + [40, 41, 41]
    table = table_of(labels, [0] * 123)
    codes = draw_split(table, "random", 0.2, 0)
    assert (codes == 2).sum() == round(0.2 * 123) and set(codes.tolist()) == {1, 2}
    stored = np.array(table.labels)
    for label in range(10):
        assert 1 <= (codes[stored == label] == 2).sum() <= 3
    assert 3 <= (codes[stored == NO_LABEL] == 2).sum() <= 5
    for label in set(stored.tolist()):
        assert (codes[stored == label] == 1).any(), "no class is tested without training clips"
    assert np.array_equal(codes, draw_split(table, "random", 0.2, 0))
    assert not np.array_equal(codes, draw_split(table, "random", 0.2, 1))


def test_a_split_by_subject_parts_nobody() -> None:
    subjects = RNG.integers(0, 10, size=200).tolist()
    table = table_of([0] * 200, subjects)
    seen = set()
    for seed in range(20):
        codes = draw_split(table, "subject", 0.3, seed)
        tested = set(np.array(subjects)[codes == 2].tolist())
        assert len(tested) == 3 and not tested & set(np.array(subjects)[codes == 1].tolist())
        seen |= tested
    assert seen == set(range(10)), "anybody can be drawn"


@pytest.mark.parametrize(("share", "tested"), [(0.0, 0), (0.01, 1), (0.99, 4), (0.5, 2)])
def test_both_parts_have_a_clip_unless_none_is_wanted(share: float, tested: int) -> None:
    table = table_of([0] * 5, [1, 2, 3, 4, 5])
    for by in ("random", "subject"):
        assert (draw_split(table, by, share, 0) == 2).sum() == tested
    assert draw_split(table_of([0], [1]), "random", 0.5, 0).tolist() == [1]


def test_splits_by_default_and_by_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"c{i:02d},{i % 2},{i // 2},{i % 5}\n" for i in range(10))
    request = folder(tmp_path / "raw", people(10), f"name,label,subject,camera\n{rows}")
    store = made(request)
    assert list(store.splits) == ["subject"] and (store.splits["subject"] == 2).sum() == 2
    assert "one was drawn: --split-by subject" in capsys.readouterr().out
    chosen = dataclasses.replace(request, split_by="camera", test_share=0.4, seed=3)
    store = made(chosen)
    tested = set(store.meta["camera"][store.splits["camera"] == 2].tolist())
    assert list(store.splits) == ["camera"] and len(tested) == 2
    assert "note: the raw data have no split" not in capsys.readouterr().out
    alone = rows.replace(",0,", ",7,")
    (request.raw / "labels.csv").write_text(f"name,label,subject,split\n{_split(alone)}")
    store = made(dataclasses.replace(request, split_by="random"))
    assert list(store.splits) == ["default", "random"]
    capsys.readouterr()
    assert list(made(dataclasses.replace(request, seed=1)).splits) == ["default"]
    assert "no split was drawn, the raw data have one" in capsys.readouterr().out


def _split(rows: str) -> str:
    lines = [line.rsplit(",", 1)[0] for line in rows.splitlines()]
    return "".join(f"{line},{('train', 'test')[i % 2]}\n" for i, line in enumerate(lines))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--split-by", "subjcet"], ["split_by: subjcet is no column", "random, camera"]),
        (["--split-by", "camera"], ["split_by: camera, which is 4 for every clip", "random"]),
        (["--split-by", "late"], ["split_by", "late"]),
        (["--test-share", "1"], ["test_share: 1.0", "below 1"]),
        (["--test-share", "nan"], ["test_share: nan"]),
        (["--seed", "-1"], ["seed: -1"]),
        (["--units", "feet"], ["units", "mm"]),
    ],
)
def test_splits_that_cannot_be_drawn(
    tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    table = "name,label,camera,split_late\nc00,0,4,train\nc01,0,4,test\n"
    request = folder(tmp_path / "raw", people(2), table)
    given = ["--raw", str(request.raw), "--out", str(tmp_path / "o"), "--layout", "h36m17"]
    done = call(main, "generic", *given, *arguments)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_folder_without_clips_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"has no \.npy, \.json, \.bvh, \.c3d"):
        open_generic(tmp_path, layout="h36m17")


def test_a_split_of_the_data_is_not_replaced_by_a_drawn_one(tmp_path: Path) -> None:
    request = folder(tmp_path / "raw", people(2), "name,split_random\nc00,train\nc01,test\n")
    with pytest.raises(InputError, match="split_by: the raw data have a split random"):
        prepare(dataclasses.replace(request, split_by="random"))
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
    assert made(request).splits["random"].tolist() == [1, 2]
