# SPDX-License-Identifier: Apache-2.0
"""Arrays of users as clips: every one is checked before it is encoded.

Shapes: M bodies, T frames, V joints, 3 coordinates in metres, y up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sjepa_fast.data.units import wrong_units
from sjepa_fast.errors import InputError
from sjepa_fast.skeletons import LAYOUTS, SkeletonLayout, layout_named

Clips = NDArray[Any] | Iterable[ArrayLike]
Named = Iterable[tuple[str, ArrayLike]]


def named_clips(clips: Clips) -> Iterator[tuple[str, ArrayLike]]:
    """Name clips by their number: one array (T, V, 3) or (M, T, V, 3), or an iterable of them.

    An array of five axes, (N, M, T, V, 3), is N clips. Tensors are arrays too.
    """
    several = clips if getattr(clips, "ndim", None) in (None, 5) else [clips]
    if not isinstance(several, Iterable):
        raise InputError("clips", type(clips).__name__, "give an array, or a list of arrays")
    for number, clip in enumerate(several):
        yield f"clip {number}", clip


def checked_clip(name: str, values: ArrayLike, layout: SkeletonLayout) -> NDArray[Any]:
    """Return a clip as (M, T, V, 3), without bodies that are zero in all frames.

    Raises InputError, with the name, if the values are no numbers, not finite or all zero, have
    other axes or other joints than the layout, or are no metres.
    """
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        # The last two are those of tensors on a GPU and of tensors that learn.
        raise InputError("clips", f"{name} is no array ({error})", _axes(layout)) from error
    full = array[None] if array.ndim == 3 else array
    if array.dtype.kind not in "fiu":
        raise InputError("clips", f"{name} has values of type {array.dtype}", "give numbers")
    if full.ndim != 4 or 0 in full.shape:
        raise InputError("clips", f"{name} has the shape {array.shape}", _axes(layout))
    if full.shape[3] != 3:
        fix = "image coordinates become clips by: python -m sjepa_fast.prepare generic"
        value = f"{name} has {full.shape[3]} coordinates for each joint, not 3"
        raise InputError("clips", value, fix if full.shape[3] == 2 else _axes(layout))
    if full.shape[2] != layout.num_joints:
        known = [other.name for other in LAYOUTS if other.num_joints == full.shape[2]]
        own = "pass its SkeletonLayout, or make a store with it (sjepa_fast.prepare generic)"
        fix = f"name its layout: {' or '.join(known)}" if known else own
        value = f"{name} has {full.shape[2]} joints, {layout.name} has {layout.num_joints}"
        raise InputError("layout", value, fix)
    if not np.isfinite(full).all():
        fix = "leave it out, or mend it"
        raise InputError("clips", f"{name} has coordinates that are NaN or infinite", fix)
    present = full.any(axis=(1, 2, 3))
    if not present.any():
        raise InputError("clips", f"{name} is zero everywhere", "leave it out")
    found = full if present.all() else full[present]
    wrong = wrong_units(found)
    if wrong is not None:
        raise InputError("clips", f"{name} {wrong[0]}", wrong[1])
    return found


def _axes(layout: SkeletonLayout) -> str:
    joints = layout.num_joints
    return f"give (T, {joints}, 3) or (bodies, T, {joints}, 3), and several clips as a list"


def chosen_layout(layout: str | SkeletonLayout | None, own: SkeletonLayout) -> SkeletonLayout:
    """Return the layout that is meant: the model's own, a known one by its name, or a given one.

    Raises InputError, with the nearest names, if there is none of that name.
    """
    if layout is None:
        return own
    if isinstance(layout, str):
        return own if layout == own.name else layout_named(layout)
    return layout


def windows(
    stream: ArrayLike, window: int, stride: int, layout: SkeletonLayout
) -> list[NDArray[Any]]:
    """Cut a recording into views of `window` frames, one every `stride` frames.

    Raises InputError as `checked_clip`, or if a number is below 1 or the recording is too short.
    """
    for name, value in (("window", window), ("stride", stride)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise InputError(name, value, "give a whole number of frames, at least 1")
    whole = checked_clip("stream", stream, layout)
    frames = whole.shape[1]
    if window > frames:
        raise InputError("window", f"{window} frames of {frames}", "give at most as many")
    return [whole[:, begin : begin + window] for begin in range(0, frames - window + 1, stride)]
