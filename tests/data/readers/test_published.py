"""Counts beside the published ones, from the real lists of names and from invented ones."""

import lzma
from pathlib import Path

import numpy as np
import pytest

from sjepa_fast.data.readers.ntu_splits import ntu60_splits, ntu120_splits, parse_ntu_name
from sjepa_fast.data.readers.published import PUBLISHED, Published, compare

SPLITS = {"ntu60": ntu60_splits, "ntu120": ntu120_splits}


def splits_of(name: str, names: list[str]) -> dict[str, np.ndarray]:
    parts = [parse_ntu_name(clip) for clip in names]
    keys = ("setup", "camera", "subject")
    return SPLITS[name]({key: np.array([getattr(p, key) for p in parts]) for key in keys})


@pytest.mark.parametrize("name", ["ntu60", "ntu120"])
def test_the_published_names_have_the_published_sizes(data_root: Path, name: str) -> None:
    packed = (data_root / "ntu_metadata" / name / "skes_available_name.txt.xz").read_bytes()
    names = lzma.decompress(packed).decode().split()
    said = compare(name, len(names), len(names), splits_of(name, names))
    assert said == f"the {len(names)} clips and their splits have the published sizes"
    said = compare(name, len(names) + 5, len(names) - 1, splits_of(name, names[1:]))
    assert said.startswith("warning:") and f"{len(names) - 1} clips not {len(names)}" in said
    assert "xsub" in said and "--missing" in said
    swapped = [*names[1:], names[0].replace(names[0][8:12], "P003")]
    said = compare(name, len(names), len(names), splits_of(name, swapped))
    assert said.startswith("warning:") and "xsub" in said, "equal counts, another split"


def test_a_part_is_only_noted() -> None:
    names = [f"S001C00{c}P00{p}R001A001" for c in (1, 2, 3) for p in (1, 3)]
    said = compare("ntu60", 6, 6, splits_of("ntu60", names))
    assert said.startswith("note: a part of ntu60") and "56578" in said
    assert compare("sbu", 3, 3, {}) == ""


def test_invented_names_at_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        f"S{s:03d}C{c:03d}P{p:03d}R001A{a:03d}"
        for s in range(1, 4)
        for c in (1, 2, 3)
        for p in range(1, 41)
        for a in range(1, 11)
    ]
    whole = Published(3600, {"xsub": (1800, 1800), "xview": (2400, 1200)})
    monkeypatch.setitem(PUBLISHED, "ntu60", whole)
    said = compare("ntu60", 3600, 3600, splits_of("ntu60", names))
    assert said == "the 3600 clips and their splits have the published sizes"
    said = compare("ntu60", 3600, 3599, splits_of("ntu60", names[1:]))
    assert said.startswith("warning: ntu60 differs") and "3599 clips not 3600" in said
    assert "xsub (1799, 1800) not (1800, 1800)" in said
    assert compare("ntu60", 3599, 3599, splits_of("ntu60", names[1:])).startswith("note: a part")


def test_splits_add_up_to_the_clips() -> None:
    for published in PUBLISHED.values():
        assert {train + test for train, test in published.splits.values()} == {published.clips}
