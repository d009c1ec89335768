"""Skeleton layouts: which joint is which, who is its parent, and what mirrors what.

Your own layout takes ten lines:

    >>> stick = SkeletonLayout(
    ...     name="stick7",
    ...     joints=("pelvis", "chest", "head", "hand_l", "hand_r", "foot_l", "foot_r"),
    ...     parents=(0, 0, 1, 1, 1, 0, 0),
    ...     swaps=((3, 4), (5, 6)),
    ...     center=0,
    ...     spine_top=1,
    ...     shoulders=(3, 4),
    ...     hips=(5, 6),
    ... )
    >>> stick.flip_permutation()
    (0, 1, 2, 4, 3, 6, 5)

Indices are 0-based. Coordinates in a store are metres with y up.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any

from sjepa_fast.errors import InputError


@dataclass(frozen=True)
class SkeletonLayout:
    """Joints of a skeleton and the roles that views and normalisations need.

    Attributes:
        name: Short name, stored with the data.
        joints: Joint names.
        parents: Parent of each joint; the root is its own parent.
        swaps: (left, right) pairs exchanged by a mirror.
        center: Pelvis, or the joint that stands for it.
        spine_top: Joint between the shoulders; spine_top - center is the body's own axis.
        shoulders: (left, right).
        hips: (left, right).
    """

    name: str
    joints: tuple[str, ...]
    parents: tuple[int, ...]
    swaps: tuple[tuple[int, int], ...]
    center: int
    spine_top: int
    shoulders: tuple[int, int]
    hips: tuple[int, int]

    def __post_init__(self) -> None:
        count = len(self.joints)
        if len(self.parents) != count:
            fix = f"give one parent for each of the {count} joints"
            raise InputError("layout.parents", f"{len(self.parents)} entries", fix)
        used = [*self.parents, self.center, self.spine_top, *self.shoulders, *self.hips]
        used += [joint for pair in self.swaps for joint in pair]
        for joint in used:
            if not 0 <= joint < count:
                raise InputError("layout", f"joint {joint}", f"use indices 0..{count - 1}")
        swapped = [joint for pair in self.swaps for joint in pair]
        if len(set(swapped)) != len(swapped):
            raise InputError("layout.swaps", self.swaps, "name every joint at most once")
        roots = [joint for joint, parent in enumerate(self.parents) if joint == parent]
        if len(roots) != 1:
            raise InputError("layout.parents", f"roots {roots}", "make one joint its own parent")
        for joint in range(count):
            walked, here = 0, joint
            while self.parents[here] != here:
                here, walked = self.parents[here], walked + 1
                if walked > count:
                    raise InputError("layout.parents", f"cycle at joint {joint}", "make a tree")

    @property
    def num_joints(self) -> int:
        """V."""
        return len(self.joints)

    @property
    def bones(self) -> tuple[tuple[int, int], ...]:
        """(child, parent) of every bone; the root has none."""
        return tuple((j, p) for j, p in enumerate(self.parents) if j != p)

    def flip_permutation(self) -> tuple[int, ...]:
        """Joint order after a mirror: `x[..., flip, :]` exchanges left and right."""
        order = list(range(self.num_joints))
        for left, right in self.swaps:
            order[left], order[right] = right, left
        return tuple(order)

    def to_dict(self) -> dict[str, Any]:
        """Return the layout as plain values for a store's manifest."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SkeletonLayout:
        """Rebuild a layout from `to_dict`'s values, as JSON gives them back."""
        return cls(
            name=values["name"],
            joints=tuple(values["joints"]),
            parents=tuple(values["parents"]),
            swaps=tuple((left, right) for left, right in values["swaps"]),
            center=values["center"],
            spine_top=values["spine_top"],
            shoulders=(values["shoulders"][0], values["shoulders"][1]),
            hips=(values["hips"][0], values["hips"][1]),
        )


_LIMBS = (
    "shoulder_left elbow_left wrist_left hand_left shoulder_right elbow_right wrist_right "
    "hand_right hip_left knee_left ankle_left foot_left hip_right knee_right ankle_right "
    "foot_right"
).split()
_LIMB_SWAPS = ((4, 8), (5, 9), (6, 10), (7, 11), (12, 16), (13, 17), (14, 18), (15, 19))

NTU25 = SkeletonLayout(
    name="ntu25",
    joints=(
        *("spine_base", "spine_middle", "neck", "head"),
        *_LIMBS,
        *("spine_shoulders", "handtip_left", "thumb_left", "handtip_right", "thumb_right"),
    ),
    # Source: method 1.1; the bone (21, 21) of the 1-based list is the pelvis' place in this tree.
    parents=(
        *(0, 0, 20, 2, 20, 4, 5, 6, 20, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18),
        *(1, 22, 7, 24, 11),
    ),
    swaps=(*_LIMB_SWAPS, (21, 23), (22, 24)),
    center=0,
    spine_top=20,
    shoulders=(4, 8),
    hips=(12, 16),
)

KINECT20 = SkeletonLayout(
    name="kinect20",
    joints=("hip_center", "spine", "shoulder_center", "head", *_LIMBS),
    parents=(0, 0, 1, 2, 2, 4, 5, 6, 2, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18),
    swaps=_LIMB_SWAPS,
    center=0,
    spine_top=2,
    shoulders=(4, 8),
    hips=(12, 16),
)

KINECT15 = SkeletonLayout(
    name="kinect15",
    joints=(
        *("head", "neck", "torso"),
        *("shoulder_left", "elbow_left", "hand_left"),
        *("shoulder_right", "elbow_right", "hand_right"),
        *("hip_left", "knee_left", "foot_left", "hip_right", "knee_right", "foot_right"),
    ),
    parents=(1, 2, 2, 1, 3, 4, 1, 6, 7, 2, 9, 10, 2, 12, 13),
    swaps=((3, 6), (4, 7), (5, 8), (9, 12), (10, 13), (11, 14)),
    center=2,
    spine_top=1,
    shoulders=(3, 6),
    hips=(9, 12),
)

LAYOUTS = {layout.name: layout for layout in (NTU25, KINECT20, KINECT15)}


def layout_named(name: str) -> SkeletonLayout:
    """Return a built-in layout.

    Args:
        name: ntu25, kinect20 or kinect15.

    Returns:
        The layout.

    Raises:
        InputError: If there is none of that name.
    """
    if name not in LAYOUTS:
        close = difflib.get_close_matches(name, LAYOUTS, n=1) or list(LAYOUTS)
        raise InputError("layout", name, f"nearest: {', '.join(close)}")
    return LAYOUTS[name]
