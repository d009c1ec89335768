"""What a skeleton layout is: its joints, how they connect, and which ones mirror each other."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sjepa_fast.errors import InputError


@dataclass(frozen=True)
class SkeletonLayout:
    """The joints of one skeleton format, 0-based, in the order of the data's joint axis.

    Coordinates that go with a layout are metres in a right-handed frame with y up, so somebody
    who faces the sensor has the own left side at smaller x.

    A layout of your own (here a toy one) takes ten lines:

    >>> stick = SkeletonLayout(
    ...     name="stick",
    ...     joints=("pelvis", "neck", "l_shoulder", "r_shoulder", "l_hip", "r_hip"),
    ...     parents=(0, 0, 1, 1, 0, 0),
    ...     swaps=((2, 3), (4, 5)),
    ...     center=0,
    ...     spine_top=1,
    ...     shoulders=(2, 3),
    ...     hips=(4, 5),
    ... )
    >>> stick.num_joints, stick.flip_permutation()
    (6, (0, 1, 3, 2, 5, 4))

    Attributes:
        name: Short name; a store keeps the whole layout, so any name may be used.
        joints: Joint names.
        parents: Parent of each joint; the root is its own parent.
        swaps: (left, right) pairs that trade places in a mirror image.
        center: Pelvis or root joint, the origin of a centred clip.
        spine_top: Mid-shoulder joint; the body's vertical axis is spine_top - center.
        shoulders: (left, right).
        hips: (left, right).

    Raises:
        InputError: If the values contradict each other.
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
        if not self.name or count == 0 or len(set(self.joints)) != count:
            raise InputError("layout.joints", self.joints, "name every joint once")
        if len(self.parents) != count:
            fix = f"give one parent for each of the {count} joints"
            raise InputError("layout.parents", f"{len(self.parents)} values", fix)
        for field, used in (
            ("parents", self.parents),
            ("swaps", tuple(joint for pair in self.swaps for joint in pair)),
            ("center, spine_top", (self.center, self.spine_top)),
            ("shoulders, hips", (*self.shoulders, *self.hips)),
        ):
            if any(not 0 <= joint < count for joint in used):
                raise InputError(f"layout.{field}", used, f"use joints 0..{count - 1}")
        self._check_tree()
        swapped = [joint for pair in self.swaps for joint in pair]
        if len(set(swapped)) != len(swapped):
            raise InputError("layout.swaps", self.swaps, "use each joint in one pair at most")
        if self.center == self.spine_top:
            raise InputError("layout.spine_top", self.spine_top, "name another joint than center")
        for field, pair in (("shoulders", self.shoulders), ("hips", self.hips)):
            if pair[0] == pair[1]:
                raise InputError(f"layout.{field}", pair, "name a left and a right joint")

    def _check_tree(self) -> None:
        roots = [joint for joint, parent in enumerate(self.parents) if joint == parent]
        if len(roots) != 1:
            raise InputError("layout.parents", f"roots {roots}", "make one joint its own parent")
        for joint in range(self.num_joints):
            ancestor = joint
            for _ in range(self.num_joints):
                ancestor = self.parents[ancestor]
            if ancestor != roots[0]:
                fix = f"lead every joint to the root {roots[0]}"
                raise InputError("layout.parents", f"joint {joint} is in a loop", fix)

    @property
    def num_joints(self) -> int:
        """V."""
        return len(self.joints)

    @property
    def bones(self) -> tuple[tuple[int, int], ...]:
        """The (child, parent) pairs, without the root's own."""
        return tuple(
            (child, parent) for child, parent in enumerate(self.parents) if child != parent
        )

    def flip_permutation(self) -> tuple[int, ...]:
        """Return the joint order of a mirror image: output joint j shows input joint p[j]."""
        order = list(range(self.num_joints))
        for left, right in self.swaps:
            order[left], order[right] = right, left
        return tuple(order)

    def to_dict(self) -> dict[str, Any]:
        """Return the layout as plain values that JSON can hold."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> SkeletonLayout:
        """Build a layout from what `to_dict` gave, also after a pass through JSON.

        Args:
            values: One entry per attribute.

        Returns:
            The layout.

        Raises:
            InputError: If entries are missing, unknown, of another type, or contradict each other.
        """
        try:
            return SkeletonLayout(
                **{
                    **values,
                    "joints": tuple(str(joint) for joint in values["joints"]),
                    "parents": tuple(int(parent) for parent in values["parents"]),
                    "swaps": tuple((int(left), int(right)) for left, right in values["swaps"]),
                    "center": int(values["center"]),
                    "spine_top": int(values["spine_top"]),
                    "shoulders": _pair(values["shoulders"]),
                    "hips": _pair(values["hips"]),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            reason = f"{type(error).__name__} {error}"
            raise InputError("layout", reason, "give every field of SkeletonLayout") from error


def _pair(values: Any) -> tuple[int, int]:
    left, right = values
    return int(left), int(right)
