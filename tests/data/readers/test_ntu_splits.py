"""Published split sizes, at full scale, from the names alone (method 1.2)."""

import lzma
from pathlib import Path

import numpy as np
import pytest

from sjepa_fast.data.readers.ntu_splits import (
    NTU60_TRAIN_SUBJECTS,
    NTU120_TRAIN_SUBJECTS,
    ntu60_splits,
    ntu120_splits,
    parse_ntu_name,
)
from sjepa_fast.errors import InputError


def columns(folder: Path) -> dict[str, np.ndarray]:
    text = lzma.decompress((folder / "skes_available_name.txt.xz").read_bytes()).decode()
    names = [parse_ntu_name(name) for name in text.split()]
    return {
        key: np.array([getattr(n, key) for n in names]) for key in ("setup", "camera", "subject")
    }


def sizes(codes: np.ndarray) -> tuple[int, int]:
    return int((codes == 1).sum()), int((codes == 2).sum())


def test_names() -> None:
    name = parse_ntu_name("S017C003P020R002A060")
    assert (name.setup, name.camera, name.subject, name.repetition, name.action) == (
        17,
        3,
        20,
        2,
        60,
    )
    with pytest.raises(InputError, match="S1C2"):
        parse_ntu_name("S1C2")


def test_subject_lists() -> None:
    assert len(set(NTU60_TRAIN_SUBJECTS)) == 20
    assert len(set(NTU120_TRAIN_SUBJECTS)) == 53


def test_ntu60_sizes(data_root: Path) -> None:
    found = ntu60_splits(columns(data_root / "ntu_metadata" / "ntu60"))
    assert sizes(found["xsub"]) == (40_091, 16_487)
    assert sizes(found["xview"]) == (37_646, 18_932)


def test_ntu120_sizes(data_root: Path) -> None:
    found = ntu120_splits(columns(data_root / "ntu_metadata" / "ntu120"))
    assert sizes(found["xsub"]) == (63_026, 50_919)
    assert sizes(found["xset"]) == (54_468, 59_477)
