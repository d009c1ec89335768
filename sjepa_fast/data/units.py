# SPDX-License-Identifier: Apache-2.0
"""Units of length, told by how far a person's joints reach.

Shapes: M bodies, T frames, V joints, 3 coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.errors import InputError

# Arms up, a tall person spans some 2.5 m; glitches of a tracker are left to the median.
MOST_METRES = 10.0
# Less than a hand alone.
LEAST_METRES = 0.02
# A person of 0.5 to 4 m in millimetres begins here; less is centimetres.
_MILLIMETRES = 400.0

Units = Literal["auto", "m", "cm", "mm"]
# The name of each unit, and how many of it are a metre.
IN_A_METRE = {"m": ("metres", 1), "cm": ("centimetres", 100), "mm": ("millimetres", 1000)}


def body_span(clip_MTVC: NDArray[Any]) -> float:
    """Return how far the first body's joints reach along an axis, in the clip's own unit.

    That is the median over the frames in which joints lie apart; 0 if there are none.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        body_TVC = clip_MTVC[0].astype(np.float64)
        span_T = (body_TVC.max(axis=1) - body_TVC.min(axis=1)).max(axis=1)
        seen_T = span_T[span_T > 0]
    return float(np.median(seen_T)) if len(seen_T) else 0.0


def _unit_of(span: float) -> str:
    if span <= MOST_METRES:
        return "m"
    return "mm" if span > _MILLIMETRES else "cm"


def not_metres(span: float) -> tuple[str, str] | None:
    """Return what a span is instead of metres, and the fix; None for what a person can span."""
    unit, factor = IN_A_METRE[_unit_of(span)]
    if factor == 1:
        return None
    return f"spans {span:.5g} in a frame, which are no metres", f"divide {unit} by {factor}"


def wrong_units(clip_MTVC: NDArray[Any]) -> tuple[str, str] | None:
    """Return what is found in a clip instead of metres, and the fix; None for metres."""
    return not_metres(body_span(clip_MTVC))


def settle_units(spans: Sequence[float], asked: Units) -> tuple[int, str]:
    """Find the one unit of a set of clips, by the median of their spans, unless it is `asked`.

    Returns how many of it are a metre, and a note, which is empty for metres. Raises InputError if
    no person spans so little or so much in any of the units.
    """
    seen = [span for span in spans if span > 0]
    if asked != "auto" or not seen:
        name, factor = IN_A_METRE["m" if asked == "auto" else asked]
        return factor, f"{name} are divided by {factor}" if factor > 1 else ""
    span = float(np.median(seen))
    name, factor = IN_A_METRE[_unit_of(span)]
    if not LEAST_METRES <= span / factor <= MOST_METRES:
        value = f"a body spans {span:.3g} in a frame, which no person does in m, cm or mm"
        raise InputError("units", value, "scale the clips to metres, or name the unit: --units mm")
    note = f"a body spans {span:.4g} in a frame: {name}, divided by {factor}; else give --units"
    return factor, note if factor > 1 else ""


def odd_size(clip_MTVC: NDArray[Any]) -> str:
    """Say why a clip in metres shows no person; empty if it may. Joints in one place pass."""
    span = body_span(clip_MTVC)
    if span == 0 or LEAST_METRES <= span <= MOST_METRES:
        return ""
    return f"a body spans {span:.3g} m in a frame: no person, or another unit than --units"
