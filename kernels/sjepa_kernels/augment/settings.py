# SPDX-License-Identifier: Apache-2.0
"""Settings of `augment_clips`: the ranges of crop and view, and the skeleton.

Shapes: V joints.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sjepa_kernels._checks import bad_value
from sjepa_kernels.tubelets import TOKEN_STREAMS, TokenStream

FORMS = ("body", "axes", "two_axes")
SAMPLINGS = ("resize", "index")


class PackedStore(NamedTuple):
    """Clips of any length behind each other; body m of frame t of clip i is a row of joints."""

    joints_RVC: Tensor
    """Row offset + m * frames + t; floating point."""
    offsets_N: Tensor
    """First row of each clip, int64."""
    frames_N: Tensor
    """Frames of each clip, int64."""
    bodies_N: Tensor
    """Bodies of each clip, int64."""


@dataclass(frozen=True, kw_only=True)
class CropShare:
    """How much of a clip a training crop keeps, and how fast it is played."""

    crop_min: float = 0.5
    """Smallest share of a clip that a training crop keeps (the largest is 1)."""
    time_warp: float = 0.0
    """w, up to 0.5: a crop runs at 1 - 2 w to 1 + 2 w times its even speed, which changes smoothly;
    share s of the way becomes s + s (1 - s) (a + b (1 - 2 s)), with a, b of U(-w, w); 0 is off."""


@dataclass(frozen=True, kw_only=True)
class CropRanges(CropShare):
    """Which part of a clip a training crop keeps."""

    crop_min_frames: int = 64
    """Crops have at least this many frames; of a shorter clip, they are the whole
    clip."""


@dataclass(frozen=True, kw_only=True)
class ViewRanges:
    """The geometric view of a crop; every range is symmetric and 0 switches it off."""

    form: Literal["body", "axes", "two_axes"] = "body"
    """body: turn about the body's own vertical (S-JEPA); axes: about each coordinate axis through
    the origin (MAMP, Skeleton2vec); two_axes: about x, then y (CTR-GCN)."""
    rotation: float = 0.3
    """Angle, or with the other forms each of the angles, U(-rotation, rotation) rad."""
    tilt: float = 0.0
    """body: angles about the two horizontal axes after that turn, U(-tilt, tilt) rad; off in the
    papers' presets."""
    translation: float = 0.0
    """Shift of each axis, U(-translation, translation) m."""
    scale: float = 0.0
    """One factor for all coordinates of the clip, U(1 - scale, 1 + scale); the pivot stays where
    it is."""
    shear: float = 0.0
    """Each of the six off-diagonal entries of the shear, U(-shear, shear)."""
    flip: float = 0.0
    """Probability of a left-right mirror with joint swap."""
    joint_drop: float = 0.0
    """Probability that a joint is missing: its tokens are zero in the whole view, of all bodies."""


@dataclass(frozen=True, kw_only=True)
class Augmentation(ViewRanges, CropRanges):
    """How a training clip becomes tokens: frames, crop, view, stream and tubelets.

    With (x - pivot) for a joint, A = shear * scale * rotation and F the mirror, the view is
    F A (x - pivot) + pivot + shift. The rotation of form "body" is about the first body's own axis,
    after which it is tilted, and its pivot is that body's clip-mean center (S-JEPA, method 3.3); of
    form "axes" it is R = Rz Ry Rx about the origin (MAMP, method 1.5), of "two_axes" Ry Rx.
    Missing joints are left out of the finished stream, so that no bone leads to where they are not.
    """

    frames: int = 120
    """T, frames of the result."""
    bodies: int = 2
    """M; absent ones are zero."""
    segment_length: int = 4
    """l, frames in a tubelet; divides `frames`."""
    sampling: Literal["resize", "index"] = "resize"
    """resize: a random crop, resized linearly; index: frames of the whole clip by number, without
    interpolation (Skeleton2vec, method 1.4); the crop's ranges are then not used, and every `impl`
    runs the reference."""
    stream: TokenStream = "joint"
    """What the tokens hold, of the clip and of the view: bones, then motion (method 1.5); all:
    joints, bones and the motion of joints, nine numbers a frame."""

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
            ("time_warp", 0.0, 0.5),
            ("rotation", 0.0, math.inf),
            ("tilt", 0.0, math.inf),
            ("translation", 0.0, math.inf),
            ("scale", 0.0, 1.0),
            ("shear", 0.0, math.inf),
            ("flip", 0.0, 1.0),
            ("joint_drop", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if not (low <= value <= high and math.isfinite(value)):
                raise bad_value(name, value, f"give a finite number from {low:g} to {high:g}")
        choices = {"form": FORMS, "sampling": SAMPLINGS, "stream": TOKEN_STREAMS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise bad_value(
                    name, repr(getattr(self, name)), f"choose one of {', '.join(known)}"
                )
        if self.tilt and self.form != "body":
            raise bad_value("tilt", self.tilt, 'use form="body", or rotation alone')
        if self.time_warp and self.sampling == "index":
            raise bad_value("time_warp", self.time_warp, 'use sampling="resize"')


@dataclass(frozen=True)
class SkeletonTables:
    """The tables of a skeleton that the op reads, on the device of the store; made by `of`."""

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
