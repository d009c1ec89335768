"""Units, axes and sides, told from the bodies of stores: synthetic ones, and the real sets."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sjepa_fast.data.pool.posture import check, measure
from sjepa_fast.data.readers.ragged_npz import SETS
from sjepa_fast.data.store import Store, open_store
from sjepa_fast.data.store_writer import StoreWriter
from sjepa_fast.errors import InputError
from sjepa_fast.prepare import PrepareConfig, prepare
from sjepa_fast.skeletons import COCO17, KINECT15, KINECT20, KINECT22, NTU25, SkeletonLayout
from tests.pools import copied

Change = Callable[[np.ndarray], np.ndarray]
AXES = np.eye(3)


def changed(store: Store, out: Path, change: Change, layout: SkeletonLayout = NTU25) -> Store:
    """Some clips of a store with other coordinates, or in another layout."""
    ids = range(0, len(store), 7)
    return open_store(copied(store, out, layout=layout, change=change, ids=ids))


def turned(*order: tuple[int, int]) -> Change:
    """Take each axis from another one, with a sign."""
    return lambda x: np.stack([sign * x[..., axis] for axis, sign in order], axis=-1)


def ankles(clip: np.ndarray) -> np.ndarray:
    """The feet where the ankles are, as OpenNI has them."""
    order = list(range(25))
    order[15], order[19] = 14, 18
    return clip[:, :, order]


@pytest.mark.parametrize(
    "layout", [NTU25, KINECT22, KINECT20, KINECT15, COCO17], ids=lambda layout: layout.name
)
def test_a_store_as_it_should_be(store: Path, tmp_path: Path, layout: SkeletonLayout) -> None:
    change = ankles if layout is KINECT15 else np.asarray
    found = measure(changed(open_store(store), tmp_path / "s", change, layout))
    assert check(open_store(tmp_path / "s"), found) == []
    assert 1 < found.span < 2 and found.up_C[1] > 0.9 and not found.flat
    assert found.forward > 0.75


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: 1000 * x, "which are no metres; divide millimetres by 1000"),
        (lambda x: 100 * x, "which are no metres; divide centimetres by 100"),
        (lambda x: x / 10, "too little for metres; scale it to metres"),
        (turned((0, 1), (1, -1), (2, -1)), r"towards -y of the feet.*\(x, -y, -z\)"),
        (turned((0, 1), (1, -1), (2, 1)), "towards -y of the feet"),
        (turned((0, 1), (2, -1), (1, 1)), r"towards \+z of the feet.*\(x, z, -y\)"),
        (turned((0, 1), (2, 1), (1, -1)), r"towards -z of the feet.*\(x, -z, y\)"),
        (turned((1, 1), (0, -1), (2, 1)), r"towards \+x of the feet.*\(-y, x, z\)"),
        (turned((1, -1), (0, 1), (2, 1)), r"towards -x of the feet.*\(y, -x, z\)"),
        (turned((0, -1), (1, 1), (2, 1)), "feet point backward in 100 %.*negate x"),
        (turned((0, 1), (1, 1), (2, -1)), "feet point backward in 100 %"),
        (lambda x: x[:, :, list(NTU25.flip_permutation())], "left and right are swapped"),
    ],
)
def test_what_is_wrong_is_named_with_the_fix(
    store: Path, tmp_path: Path, change: Change, said: str
) -> None:
    made = changed(open_store(store), tmp_path / "s", change)
    with pytest.raises(InputError, match=said) as error:
        check(made, measure(made))
    assert error.value.argument == "stores" and str(tmp_path / "s") in str(error.value)


@pytest.mark.parametrize(
    ("up", "turn"),
    [
        ("-y", "(x, -y, -z)"),
        ("+z", "(x, z, -y)"),
        ("-z", "(x, -z, y)"),
        ("+x", "(-y, x, z)"),
        ("-x", "(y, -x, z)"),
    ],
)
def test_the_named_turn_brings_y_up_without_a_mirror(up: str, turn: str) -> None:
    words = turn.strip("()").split(", ")
    rows = [AXES["xyz".index(word[-1])] * (-1 if word[0] == "-" else 1) for word in words]
    matrix = np.array(rows)
    towards = AXES["xyz".index(up[1])] * (1 if up[0] == "+" else -1)
    assert (matrix @ towards).tolist() == [0, 1, 0] and np.linalg.det(matrix) == pytest.approx(1)


def test_without_toes_knees_and_elbows_tell(store: Path, tmp_path: Path) -> None:
    mirror = turned((0, -1), (1, 1), (2, 1))
    made = changed(open_store(store), tmp_path / "s", lambda x: mirror(ankles(x)), KINECT15)
    with pytest.raises(InputError, match="knees and elbows point backward"):
        check(made, measure(made))


def test_what_cannot_be_told_is_noted(store: Path, tmp_path: Path) -> None:
    source = open_store(store)
    flat = changed(source, tmp_path / "flat", turned((0, 1), (1, 1), (2, 0)), COCO17)
    found = measure(flat)
    assert found.flat and np.isnan(found.forward)
    (note,) = check(flat, found)
    assert "left and right are taken on trust" in note

    def lying(x: np.ndarray) -> np.ndarray:
        # Half of the people lie.
        return turned((1, 1), (0, -1), (2, 1))(x) if x.shape[1] % 2 else x

    made = changed(source, tmp_path / "lying", lying)
    assert any("y up is taken on trust" in note for note in check(made, measure(made)))
    # Joints that no table knows: shoulders and hips still say what is up, nothing says forward.
    names = tuple(f"j{joint}" for joint in range(25))
    unknown = dataclasses.replace(NTU25, name="odd", joints=names)
    with StoreWriter(tmp_path / "odd", "odd", unknown, ("a",)) as writer:
        for i in range(20):
            writer.add(f"c{i}", source.clip(i), 0, {})
        odd = writer.finish({})
    (note,) = check(odd, measure(odd))
    assert "left and right" in note


@pytest.mark.parametrize("name", sorted(SETS))
def test_real_sets_are_as_their_readers_say(data_root: Path, tmp_path: Path, name: str) -> None:
    folder = data_root / SETS[name].file.split(".")[0].removesuffix("_small").removesuffix("_2")
    if not folder.is_dir():
        pytest.skip(f"no {name} in {data_root}")
    prepare(PrepareConfig(name, raw=folder, out=tmp_path / name))
    made = open_store(tmp_path / name)
    found = measure(made)
    assert check(made, found) == [] and found.forward > 0.85
    mirrored = changed(made, tmp_path / "mirrored", turned((0, -1), (1, 1), (2, 1)), made.layout)
    with pytest.raises(InputError, match="left and right are swapped"):
        check(mirrored, measure(mirrored))
