# SPDX-License-Identifier: Apache-2.0
"""What the bodies of a store say of its coordinates: their unit, what is up, what is left.

A store's frame is metres, right-handed, y up. Nothing else in a store can tell whether it is so:
the head is above the feet, and feet point forward, which is left x up in a right-handed frame.

Shapes: T frames, V joints, C coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.data.store import Store
from sjepa_fast.data.units import body_span, not_metres
from sjepa_fast.errors import InputError
from sjepa_fast.joint_map import body_part
from sjepa_fast.skeletons import SkeletonLayout

Array = NDArray[np.float64]

# Of a store, evenly spread. On the sets at hand the figures do not move with more.
CLIPS, FRAMES = 256, 16
# Metres that a person spans at least, for a set that is put beside others.
LEAST_SPAN = 0.4
# Smallest y of the mean direction from feet to head. Cameras that look down gave 0.96.
UPRIGHT = 0.7
# Share of clips above which left and right are as they should be, and below one minus it swapped.
# Six real sets gave 0.99 by their feet, and two without toes 0.90 and 0.93 by knees and elbows.
SURE = 0.75
# Metres below which a direction is none.
_NOTHING = 1e-6
# Which way a store has to be turned, without mirroring it, by its axis towards the head.
_TURNS = {
    "-y": "(x, -y, -z)",
    "+z": "(x, z, -y)",
    "-z": "(x, -z, y)",
    "+x": "(-y, x, z)",
    "-x": "(y, -x, z)",
}


@dataclass(frozen=True)
class Posture:
    """Medians and means over clips of a store."""

    span: float  # how far a body reaches along an axis, median
    up_C: Array  # mean of the unit vectors from the feet to the head
    forward: float  # share of clips whose limbs agree with left and right; NaN: none shows it
    flat: bool  # whether all joints lie in a plane of constant x, y or z: poses in an image


# Joints that are in front of others, in the mean.
Limb = tuple[list[int], list[int]]
# The same by their parts, each with what stands for it.
Kind = tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...]]
_FEET: Kind = ((("foot",),), (("ankle",),))
_KNEES: Kind = ((("knee",),), (("hip",), ("ankle", "foot")))
_ELBOWS: Kind = ((("shoulder",), ("wrist", "hand")), (("elbow",),))
_LIMBS = ((_FEET,), (_KNEES, _ELBOWS))


@dataclass(frozen=True)
class _Body:
    """Joints by part and side."""

    joints: dict[tuple[str, str], int]
    layout: SkeletonLayout

    @staticmethod
    def of(layout: SkeletonLayout) -> _Body:
        found: dict[tuple[str, str], int] = {}
        for index, joint in enumerate(layout.joints):
            found.setdefault(body_part(joint), index)
        return _Body(found, layout)

    def first(self, side: str, *parts: str) -> int | None:
        """Return the joint of the first of some parts that the layout has."""
        return next((self.joints[p, side] for p in parts if (p, side) in self.joints), None)

    @property
    def head(self) -> list[int]:
        """The head, or the shoulders, whose mean is below it."""
        found = self.first("", "head")
        return list(self.layout.shoulders) if found is None else [found]

    @property
    def feet(self) -> list[int]:
        """The lowest joints: feet, ankles, knees or hips."""
        lowest = [self.first(side, "foot", "ankle", "knee") for side in ("left", "right")]
        return [joint for joint in lowest if joint is not None] or list(self.layout.hips)

    def limbs(self) -> list[Limb]:
        """Joints whose mean is in front of that of others, of both sides.

        Toes are in front of ankles. A layout without both has knees, which bend forward, and
        elbows, which bend backward.
        """
        for kinds in _LIMBS:
            sided = [self._limb(side, kind) for kind in kinds for side in ("left", "right")]
            found = [limb for limb in sided if limb is not None]
            if found:
                return found
        return []

    @property
    def has_toes(self) -> bool:
        """Whether toes tell what is forward."""
        return self._limb("left", _FEET) is not None

    def _limb(self, side: str, kind: Kind) -> Limb | None:
        ends = [[self.first(side, *parts) for parts in end] for end in kind]
        tips, bases = ([joint for joint in end if joint is not None] for end in ends)
        return (tips, bases) if (len(tips), len(bases)) == tuple(map(len, kind)) else None


def _spread(length: int, most: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, length - 1, min(length, most)).round().astype(np.int64))


def _frames(clip_MTVC: NDArray[Any]) -> Array:
    """A few frames of the first body, without those where it is absent, (T, V, C)."""
    chosen = _spread(clip_MTVC.shape[1], FRAMES)
    body_TVC: Array = clip_MTVC[0, chosen].astype(np.float64)
    return np.compress((body_TVC != 0).any(axis=(1, 2)), body_TVC, axis=0)


def _unit(x_TC: Array) -> Array:
    length = np.linalg.norm(x_TC, axis=-1, keepdims=True)
    return np.asarray(np.where(length > _NOTHING, x_TC / np.maximum(length, _NOTHING), 0.0))


def measure(store: Store) -> Posture:
    """Measure the first bodies of clips that are spread over a store."""
    body = _Body.of(store.layout)
    limbs = body.limbs()
    (left, right), (hip_left, hip_right) = store.layout.shoulders, store.layout.hips
    spans, ups, signs = [], [], []
    widths = np.zeros(3)
    for index in _spread(len(store), CLIPS):
        x = _frames(store.clip(int(index)))
        if len(x) == 0:
            continue
        spans.append(body_span(x[None]))
        widths = np.maximum(widths, (x.max(axis=1) - x.min(axis=1)).max(axis=0))
        up_TC = _unit(x[:, body.head].mean(axis=1) - x[:, body.feet].mean(axis=1))
        ups.append(up_TC.mean(axis=0))
        across_TC = _unit(x[:, left] - x[:, right] + x[:, hip_left] - x[:, hip_right])
        ahead_TC = np.cross(across_TC, up_TC)
        offsets = [x[:, tips].mean(axis=1) - x[:, bases].mean(axis=1) for tips, bases in limbs]
        reach = float(sum((offset * ahead_TC).sum(axis=-1).mean() for offset in offsets))
        if abs(reach) > _NOTHING:
            signs.append(reach > 0)
    return Posture(
        span=float(np.median(spans)) if spans else math.nan,
        up_C=np.mean(ups, axis=0) if ups else np.full(3, math.nan),
        forward=float(np.mean(signs)) if signs else math.nan,
        flat=bool((widths < _NOTHING).any()),
    )


def check(store: Store, posture: Posture) -> list[str]:
    """Check that a store holds metres in a right-handed frame with y up.

    Returns what its bodies leave open, one phrase each. Raises InputError, with what to do, on
    another unit, another axis up, or left and right that are swapped.
    """
    if not posture.span > 0:
        fix = "prepare it again"
        raise InputError("stores", f"{store.root}: no clip has a first body", fix)
    wrong = not_metres(posture.span)
    if posture.span < LEAST_SPAN:
        wrong = f"spans {posture.span:.2g} in a frame, too little for metres", "scale it to metres"
    if wrong:
        found, fix = wrong
        raise InputError("stores", f"{store.root}: a body {found}", f"{fix} and prepare it again")
    notes = []
    axis = int(np.abs(posture.up_C).argmax())
    height = posture.up_C[axis]
    if abs(height) < UPRIGHT:
        notes.append("no axis is up in most clips, so that y up is taken on trust")
    elif (axis, height > 0) != (1, True):
        name = ("-", "+")[int(height > 0)] + "xyz"[axis]
        value = f"{store.root}: heads are towards {name} of the feet, not +y"
        fix = f"turn it to y up, {_TURNS[name]}, and prepare it again"
        raise InputError("stores", value, fix)
    if posture.forward < 1 - SURE:
        limbs = "feet" if _Body.of(store.layout).has_toes else "knees and elbows"
        share = f"{100 * (1 - posture.forward):.0f} % of the clips"
        value = f"{store.root}: {limbs} point backward in {share}, left and right are swapped"
        fix = "negate x if the frame is left-handed, or rename the joints, and prepare it again"
        raise InputError("stores", value, fix)
    if not posture.forward > SURE:
        notes.append("limbs do not show what is forward, so that left and right are taken on trust")
    return notes
