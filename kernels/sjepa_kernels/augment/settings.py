"""What `augment_clips` is told: the ranges of a view, and the skeleton.

Shapes: V joints.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sjepa_kernels._checks import bad_value

FORMS = ("body", "axes")
STREAMS = ("joint", "bone", "motion", "bone_motion")


@dataclass(frozen=True)
class Augmentation:
    """What a training clip goes through; every range is symmetric and 0 switches it off.

    With (x - pivot) for a joint, A = shear * scale * rotation and F the mirror, the view is
    F A (x - pivot) + pivot + shift; `form` says what the rotation and the pivot are.
    """

    frames: int = 120
    """T, frames after the linear resize."""
    bodies: int = 2
    """M; absent ones are zero."""
    segment_length: int = 4
    """l, frames in a tubelet; divides `frames`."""
    crop_min: float = 0.5
    """Smallest share of a clip that a crop keeps (the largest is 1)."""
    crop_min_frames: int = 64
    """Crops are at least this many frames where the clip has them."""
    form: Literal["body", "axes"] = "body"
    """body: about the first body's own axis after which it is tilted, pivot its clip-mean centre
    (S-JEPA, method 3.3); axes: R = Rz Ry Rx about the origin (MAMP, method 1.5)."""
    rotation: float = 0.3
    """Angle about the body's axis, or about each coordinate axis, U(-rotation, rotation) rad."""
    tilt: float = 0.0
    """Angles about x and z after the rotation of form "body", U(-tilt, tilt) rad."""
    translation: float = 0.0
    """Shift of each coordinate, U(-translation, translation)."""
    scale: float = 0.0
    """Factor of all coordinates, U(1 - scale, 1 + scale)."""
    shear: float = 0.0
    """Each of the six off-diagonal entries of the shear, U(-shear, shear)."""
    flip: float = 0.0
    """Probability of a mirror in x with joint swap."""
    stream: Literal["joint", "bone", "motion", "bone_motion"] = "joint"
    """What the tokens hold, of the clip and of the view: bones, then motion (method 1.5)."""

    def __post_init__(self) -> None:
        """Raise ValueError for the first value that cannot work."""
        for name in ("frames", "bodies", "segment_length", "crop_min_frames"):
            if getattr(self, name) < 1:
                raise bad_value(name, getattr(self, name), "give at least 1")
        if self.frames % self.segment_length:
            fix = f"choose a divisor of frames = {self.frames}"
            raise bad_value("segment_length", self.segment_length, fix)
        for name, low, high in (
            ("crop_min", 0.0, 1.0),
            ("rotation", 0.0, math.inf),
            ("tilt", 0.0, math.inf),
            ("translation", 0.0, math.inf),
            ("scale", 0.0, 1.0),
            ("shear", 0.0, math.inf),
            ("flip", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if not (low <= value <= high and math.isfinite(value)):
                raise bad_value(name, value, f"give a finite number from {low:g} to {high:g}")
        for name, known in (("form", FORMS), ("stream", STREAMS)):
            if getattr(self, name) not in known:
                raise bad_value(
                    name, repr(getattr(self, name)), f"choose one of {', '.join(known)}"
                )
        if self.tilt and self.form == "axes":
            raise bad_value("tilt", self.tilt, 'use form="body", or rotation alone')


@dataclass(frozen=True)
class SkeletonTables:
    """What the op must know of a skeleton, on the device of the store. Made by `of`."""

    flip_V: Tensor
    parents_V: Tensor
    center: int
    spine_top: int

    @staticmethod
    def of(
        flip: Sequence[int],
        parents: Sequence[int],
        center: int,
        spine_top: int,
        device: torch.device | str,
    ) -> "SkeletonTables":
        """Check the joints and copy the tables to the device, once for all steps.

        Args:
            flip: Joint j of a mirror image shows joint flip[j]; a permutation.
            parents: Parent of each joint; a root is its own.
            center: Joint of the pivot and the foot of the body's axis.
            spine_top: Joint at the head of the body's axis.
            device: Where the store is.

        Returns:
            The tables.

        Raises:
            ValueError: An index is not of the skeleton, or `flip` is no permutation.
        """
        joints = len(parents)
        if sorted(flip) != list(range(joints)):
            raise bad_value("flip", tuple(flip), f"give a permutation of 0..{joints - 1}")
        used = {"parents": parents, "center": (center,), "spine_top": (spine_top,)}
        for name, values in used.items():
            if not all(0 <= joint < joints for joint in values):
                raise bad_value(name, tuple(values), f"joints must lie in 0..{joints - 1}")
        return SkeletonTables(
            torch.tensor(list(flip), device=device),
            torch.tensor(list(parents), device=device),
            center,
            spine_top,
        )
