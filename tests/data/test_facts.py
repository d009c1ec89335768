"""What a store says of itself: which split needs no choice, and counts."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from sjepa_fast.config.presets_small import SMALL
from sjepa_fast.data.facts import facts_of, pick_split, usual_split
from sjepa_fast.data.store import Store
from sjepa_fast.data.store_writer import StoreWriter
from sjepa_fast.errors import InputError
from sjepa_fast.prepare import PrepareConfig, prepare
from sjepa_fast.skeletons import KINECT20

Splits = dict[str, list[int]]
SIZES = [(1, 9), (2, 20), (1, 31), (2, 40), (1, 5)]


def write(out: Path, splits: Splits) -> Store:
    """Clips of `SIZES` (bodies, frames)."""
    with StoreWriter(out, "own", KINECT20, ("a", "b")) as writer:
        for i, (bodies, frames) in enumerate(SIZES):
            writer.add(f"clip{i}", np.ones((bodies, frames, 20, 3), np.float32), i % 2, {})
        return writer.finish({k: np.array(v, dtype=np.int8) for k, v in splits.items()})


@pytest.mark.parametrize(
    ("splits", "chosen", "why"),
    [
        ({"xsub": [1, 1, 1, 2, 2]}, "xsub", "the store's only one"),
        ({"val": [1, 1, 0, 2, 2], "xsub": [1, 1, 1, 2, 2]}, "xsub", "only one but val"),
        ({"val": [1, 1, 1, 2, 2]}, "val", "the store's only one"),
        ({"a": [1, 1, 1, 2, 2], "default": [1, 2, 2, 2, 2]}, "default", "the store's default"),
        ({"xview": [1, 1, 0, 2, 2], "xview_clean": [1, 1, 0, 2, 0]}, "xview", "as xview_clean"),
        ({"empty": [2, 2, 2, 2, 2], "xsub": [1, 1, 1, 2, 2]}, "xsub", "only one"),
    ],
    ids=str,
)
def test_the_split_that_needs_no_choice(
    splits: Splits, chosen: str, why: str, tmp_path: Path
) -> None:
    found = pick_split(write(tmp_path / "s", splits))
    assert found[0] == chosen and found[1].endswith(why)


@pytest.mark.parametrize(
    ("splits", "usual"),
    [
        ({"default": [1, 1, 1, 2, 2], "xsub": [1, 2, 2, 2, 2]}, "default"),
        ({"val": [1, 2, 2, 2, 2], "xview": [1, 1, 1, 2, 2]}, "xview"),
        ({"xview": [1, 1, 1, 2, 2], "xsub": [2, 2, 1, 1, 1]}, "xsub"),
        ({"fold0": [1, 1, 1, 2, 2], "fold1": [2, 2, 1, 1, 1]}, ""),
        ({}, ""),
    ],
    ids=str,
)
def test_the_usual_split(splits: Splits, usual: str, tmp_path: Path) -> None:
    assert usual_split(write(tmp_path / "s", splits)) == usual


def test_several_splits_are_named(tmp_path: Path) -> None:
    store = write(
        tmp_path / "s", {"val": [1] * 5, "xsub": [1, 1, 1, 2, 2], "xview": [2, 1, 1, 1, 2]}
    )
    with pytest.raises(InputError) as error:
        facts_of(store.root)
    assert str(error.value) == (
        "data.split: not given; own has several; add --data.split with one of val, xsub, xview"
    )
    assert facts_of(store.root, "xview").split == "xview"
    with pytest.raises(InputError, match="own has no split with a training clip"):
        pick_split(dataclasses.replace(store, splits={"xsub": np.full(5, 2, dtype=np.int8)}))


def test_counts_are_those_of_the_training_part(tmp_path: Path) -> None:
    found = facts_of(write(tmp_path / "s", {"xsub": [1, 1, 1, 2, 2]}).root)
    assert (found.clips, found.sequences, found.frames) == (3, 4, 20)
    assert (found.joints, found.persons, found.classes, found.store) == (20, 2, 2, "own")


def test_a_store_without_a_split_is_refused(tmp_path: Path) -> None:
    store = write(tmp_path / "s", {})
    with pytest.raises(InputError, match=r"data\.split: own has no split .*; prepare it again"):
        facts_of(store.root)


@pytest.mark.parametrize("name", list(SMALL))
def test_the_known_sets_are_what_the_presets_say(
    name: str, data_root: Path, tmp_path: Path
) -> None:
    if not (data_root / name).is_dir():
        pytest.skip(f"no {name} in {data_root}")
    assert prepare(PrepareConfig(name, data_root / name, tmp_path / "s")) == 0
    found = facts_of(tmp_path / "s", SMALL[name].facts.split)
    assert dataclasses.replace(found, why_split=SMALL[name].facts.why_split) == SMALL[name].facts
    assert facts_of(tmp_path / "s").split == found.split
