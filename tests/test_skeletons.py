"""Layouts: the field's bone list, mirror pairs, and the ten-line example."""

import doctest

import pytest

from sjepa_fast import skeletons
from sjepa_fast.errors import InputError
from sjepa_fast.skeletons import LAYOUTS, NTU25, SkeletonLayout, layout_named

# method 1.1, 1-based (child, parent); (21, 21) is the root.
NTU_BONES = (
    (1, 2), (2, 21), (3, 21), (4, 3), (5, 21), (6, 5), (7, 6), (8, 7), (9, 21), (10, 9),
    (11, 10), (12, 11), (13, 1), (14, 13), (15, 14), (16, 15), (17, 1), (18, 17), (19, 18),
    (20, 19), (22, 23), (23, 8), (24, 25), (25, 12),
)  # fmt: skip


def test_ntu_bones_are_the_fields_list():
    assert set(NTU25.bones) == {(child - 1, parent - 1) for child, parent in NTU_BONES}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_flip_is_an_involution_that_swaps_left_and_right(layout: SkeletonLayout):
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
def test_layout_survives_plain_values(layout: SkeletonLayout):
    import json

    assert SkeletonLayout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout
    assert layout_named(layout.name) == layout


def test_documented_example_works():
    results = doctest.testmod(skeletons)
    assert results.attempted > 0 and results.failed == 0


def test_unknown_layout_names_the_nearest():
    with pytest.raises(InputError, match="ntu25"):
        layout_named("ntu52")


def test_bad_layouts_are_refused():
    good = NTU25.to_dict()
    for change in ({"center": 25}, {"parents": [0] * 3}, {"swaps": [[4, 8], [4, 9]]}):
        with pytest.raises(InputError):
            SkeletonLayout.from_dict({**good, **change})
