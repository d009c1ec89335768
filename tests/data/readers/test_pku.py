"""PKU-MMD on files written here in both namings: cutting, splits, and every kind of bad file."""

from pathlib import Path

import numpy as np
import pytest

from sjepa_fast.data.readers.pku import open_pku, parse_cut
from sjepa_fast.data.readers.record import Record, Source
from sjepa_fast.errors import InputError

RNG = np.random.default_rng(0)


def write(raw: Path, stem: str, frames: np.ndarray, labels: str | None) -> None:
    for folder in ("skeleton", "Label_PKU"):
        (raw / folder).mkdir(parents=True, exist_ok=True)
    np.savetxt(raw / "skeleton" / f"{stem}.txt", frames, fmt="%.6f")
    if labels is not None:
        (raw / "Label_PKU" / f"{stem}.txt").write_text(labels)


def documented() -> dict[str, int]:
    """Write what the commands of docs/data.md read; return how many clips their stores get."""
    parts = {"part1": ("0002-L", "0300-M"), "part2": ("A01N01-L", "A01N02-R")}
    for part, stems in parts.items():
        for stem in stems:
            write(Path("PKUMMD", part), stem, RNG.normal(size=(20, 150)), "1,0,9,2\n51,9,20,1\n")
    return {"pku1": 4, "pku2": 4}


def recording(frames: int) -> np.ndarray:
    data = RNG.normal(size=(frames, 150)).round(6)
    data[:50, 75:] = 0
    data[10:20] = 0
    return data


def found(source: Source) -> dict[str, Record]:
    records = list(source.records())
    assert len(records) == source.count
    return {record.name: record for record in records}


def splits(source: Source) -> dict[str, list[int]]:
    kept = [r for r in source.records() if r.clip_MTVC is not None]
    columns = {key: np.array([r.meta[key] for r in kept]) for key in kept[0].meta}
    made = source.splits([r.name for r in kept], columns)
    return {key: codes.tolist() for key, codes in made.items()}


def test_clips_are_cut_as_published(tmp_path: Path) -> None:
    data = recording(400)
    write(tmp_path, "0002-L", data, "3,0,10,2\n51,40,60,2\n7,10,20,1\n1,60,400,2\n")
    records = found(open_pku("pku1", tmp_path))
    one, two = records["0002-L-000"].clip_MTVC, records["0002-L-001"].clip_MTVC
    assert one is not None and two is not None
    np.testing.assert_array_equal(one[0], data[:10, :75].reshape(10, 25, 3).astype(np.float32))
    assert one.shape[0] == 1, "a second body that is all zero is none"
    np.testing.assert_array_equal(two[1], data[40:60, 75:].reshape(20, 25, 3).astype(np.float32))
    assert records["0002-L-000"].label == 2 and records["0002-L-001"].label == 50
    assert records["0002-L-002"].reason == "no usable skeleton"
    last = records["0002-L-003"].clip_MTVC
    assert last is not None and last.shape[1] == 300, "cut at 300 frames"
    assert records["0002-L-000"].meta == {"video": 2, "view": 1}


def test_splits_follow_the_published_rule_or_the_releases_lists(tmp_path: Path) -> None:
    names = ["0290-L", "0291-M", "0334-R", "0335-M"]
    for stem in names:
        write(tmp_path, stem, recording(30), "1,0,9,2\n")
    assert splits(open_pku("pku1", tmp_path)) == {"xsub": [1, 2, 2, 1], "xview": [2, 1, 1, 1]}
    (tmp_path / "cross-subject.txt").write_text("Training videos:\n0291-M, 0335-M\nRest:\n0290-L\n")
    assert splits(open_pku("pku1", tmp_path)) == {"xsub": [2, 1, 2, 1], "xview": [2, 1, 1, 1]}


def test_second_part(tmp_path: Path) -> None:
    for stem in ("A01N01-L", "A26N02-M", "A03N07-R", "A03N13-R"):
        write(tmp_path, stem, recording(30), "1,0,9,2\n")
    source = open_pku("pku2", tmp_path)
    names = ["A01N01-L", "A03N07-R", "A03N13-R", "A26N02-M"]
    assert [record.name for record in source.records()] == [f"{name}-000" for name in names]
    assert splits(source) == {"xsub": [1, 2, 1, 2], "xview": [2, 1, 1, 1]}
    assert found(source)["A26N02-M-000"].meta == {"group": 26, "subject": 2, "view": 2}


def test_bad_recordings_and_labels_are_named(tmp_path: Path) -> None:
    good = recording(30)
    write(tmp_path, "0001-L", good, None)
    write(tmp_path, "0002-L", good, "52,0,9,2\n0,0,9,2\n1,20,40,2\n1,9,9,2\n1,x,9\n2\n1,-3,5,2\n")
    write(tmp_path, "0003-L", good[:, :75], "1,0,9,2\n")
    write(tmp_path, "0004-L", good, "1,0,9,2\n2,12,15,2\n2,25,28,2\n")
    nan = good.copy()
    nan[26, 3] = np.nan
    np.savetxt(tmp_path / "skeleton" / "0004-L.txt", nan)
    for stem, text in (("0005-L", ""), ("0006-L", "1 2 3\n4 5\n"), ("0007-L", "one two\n")):
        write(tmp_path, stem, good, "1,0,9,2\n")
        (tmp_path / "skeleton" / f"{stem}.txt").write_text(text)
    records = found(open_pku("pku1", tmp_path))
    reasons = {name: record.reason for name, record in records.items()}
    assert {name for name, reason in reasons.items() if not reason} == {"0004-L-000"}
    for name, words in {
        "0001-L": "no label file",
        "0002-L-000": "class 52 is not one of 51",
        "0002-L-001": "class 0",
        "0002-L-002": "frames 20 to 40 of 30",
        "0002-L-003": "frames 9 to 9",
        "0002-L-004": "label line '1,x,9'",
        "0002-L-005": "label line '2'",
        "0002-L-006": "frames -3 to 5",
        "0003-L-000": "75 numbers per frame",
        "0004-L-001": "no usable skeleton",
        "0004-L-002": "NaN",
        "0005-L-000": "empty",
        "0006-L-000": "number of columns",
        "0007-L-000": "could not convert",
    }.items():
        assert words in reasons[name], (name, reasons[name])


def cut_text(frames: np.ndarray) -> str:
    lines = [str(len(frames))]
    for row in frames:
        bodies = 2 if row[75:].any() else 1
        lines += [str(bodies), "6 1 0 0 1 1 0 -0.4 -0.1 2", "25"]
        lines += [" ".join(map(str, xyz)) for xyz in row[: 75 * bodies].reshape(-1, 3).tolist()]
    return "\n".join(lines) + "\n"


def test_cut_clips(tmp_path: Path) -> None:
    data = recording(60)[45:55]
    (tmp_path / "F290V002C051L001.skeleton").write_text(cut_text(data))
    (tmp_path / "F291V001C001L004.skeleton").write_text(cut_text(data[:5]))
    (tmp_path / "F291V001C001L005.skeleton").write_text(cut_text(data)[:-400])
    (tmp_path / "F291V001C001.skeleton").write_text(cut_text(data))
    source = open_pku("pku1", tmp_path)
    records = found(source)
    np.testing.assert_array_equal(parse_cut(cut_text(data)), data)
    clip = records["F290V002C051L001"].clip_MTVC
    assert clip is not None and records["F290V002C051L001"].label == 50
    np.testing.assert_array_equal(clip[1, 7], data[7, 75:].reshape(25, 3).astype(np.float32))
    assert records["F291V001C001L005"].reason
    assert "FxxxVxxxCxxxLxxx" in records["F291V001C001"].reason
    assert splits(source) == {"xsub": [1, 2], "xview": [1, 2]}


def test_a_pass_can_begin_later(tmp_path: Path) -> None:
    for stem in ("0001-L", "0002-L"):
        write(tmp_path, stem, recording(30), "1,0,9,2\n2,9,25,2\n")
    source = open_pku("pku1", tmp_path)
    whole = [record.name for record in source.records()]
    for start in range(5):
        assert [record.name for record in source.records(start)] == whole[start:]


def test_a_folder_without_any(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no PKU-MMD text of pku2"):
        open_pku("pku2", tmp_path)
