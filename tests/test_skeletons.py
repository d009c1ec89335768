"""Layouts: the field's bone list, mirror pairs, and the ten-line example."""

import doctest

import numpy as np
import pytest
import torch

from sjepa_fast import skeletons
from sjepa_fast.data.clips import skeleton_tables
from sjepa_fast.errors import InputError
from sjepa_fast.skeletons import LAYOUTS, NTU25, SkeletonLayout, layout_named

# method 1.1, 1-based (child, parent); (21, 21) is the root.
NTU_BONES = (
    (1, 2), (2, 21), (3, 21), (4, 3), (5, 21), (6, 5), (7, 6), (8, 7), (9, 21), (10, 9),
    (11, 10), (12, 11), (13, 1), (14, 13), (15, 14), (16, 15), (17, 1), (18, 17), (19, 18),
    (20, 19), (22, 23), (23, 8), (24, 25), (25, 12),
)  # fmt: skip


def swapped(name: str) -> str:
    return name.replace("left", "?").replace("right", "left").replace("?", "right")


def side_of(name: str) -> str:
    return next((side for side in ("left", "right") if side in name), "middle")


def test_ntu_bones_are_the_fields_list() -> None:
    assert set(NTU25.bones) == {(child - 1, parent - 1) for child, parent in NTU_BONES}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_flip_is_an_involution_that_swaps_left_and_right(layout: SkeletonLayout) -> None:
    flip = layout.flip_permutation()
    assert sorted(flip) == list(range(layout.num_joints))
    assert all(flip[flip[j]] == j for j in flip)
    for j, other in enumerate(flip):
        left, right = layout.joints[j], layout.joints[other]
        assert left.replace("left", "?").replace("right", "?") == right.replace(
            "left", "?"
        ).replace("right", "?")
    assert layout.shoulders in layout.swaps and layout.hips in layout.swaps


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_flip_twice_is_the_clip_and_mirrors_left_onto_right(layout: SkeletonLayout) -> None:
    clip = np.random.default_rng(0).normal(size=(2, 5, layout.num_joints, 3))
    flip = list(layout.flip_permutation())
    mirror = np.array([-1.0, 1.0, 1.0])
    once = clip[:, :, flip] * mirror
    np.testing.assert_array_equal(once[:, :, flip] * mirror, clip)
    by_name = {name: j for j, name in enumerate(layout.joints)}
    for name, j in by_name.items():
        other = by_name[swapped(name)]
        np.testing.assert_array_equal(once[:, :, j], clip[:, :, other] * mirror)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_bones_are_a_tree_and_each_has_its_mirror(layout: SkeletonLayout) -> None:
    bones, flip = set(layout.bones), layout.flip_permutation()
    reached, left = {next(j for j, p in enumerate(layout.parents) if j == p)}, set(bones)
    while left:
        grown = {(child, parent) for child, parent in left if parent in reached}
        assert grown, f"{left} hang on nothing"
        reached |= {child for child, _ in grown}
        left -= grown
    assert len(bones) == layout.num_joints - 1 and reached == set(range(layout.num_joints))
    assert {(flip[child], flip[parent]) for child, parent in bones} == bones
    for child, parent in bones:
        sides = {side_of(layout.joints[child]), side_of(layout.joints[parent])}
        assert sides != {"left", "right"}, "no bone crosses from one side to the other"


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_the_axis_runs_up_the_spine_or_along_one_side(layout: SkeletonLayout) -> None:
    foot, head = layout.joints[layout.center], layout.joints[layout.spine_top]
    assert side_of(foot) == side_of(head)
    for pair, word in ((layout.shoulders, "shoulder"), (layout.hips, "hip")):
        assert [layout.joints[j] for j in pair] == [f"{word}_left", f"{word}_right"]
    tables = skeleton_tables(layout, torch.device("cpu"))
    assert (tables.center, tables.spine_top) == (layout.center, layout.spine_top)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_layout_survives_plain_values(layout: SkeletonLayout) -> None:
    import json

    assert SkeletonLayout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout
    assert layout_named(layout.name) == layout


def test_documented_example_works() -> None:
    results = doctest.testmod(skeletons)
    assert results.attempted > 0 and results.failed == 0


def test_unknown_layout_names_the_nearest() -> None:
    with pytest.raises(InputError, match="ntu25"):
        layout_named("ntu52")


def test_bad_layouts_are_refused() -> None:
    good = NTU25.to_dict()
    for change in ({"center": 25}, {"parents": [0] * 3}, {"swaps": [[4, 8], [4, 9]]}):
        with pytest.raises(InputError):
            SkeletonLayout.from_dict({**good, **change})
