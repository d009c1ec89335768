"""Whether coordinates can be metres: no person spans more than a few.

Shapes: M bodies, T frames, V joints, 3 coordinates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Arms up, a tall person spans some 2.5 m; glitches of a tracker are left to the median.
MOST_METRES = 10.0
# A person of 0.5 to 4 m in millimetres begins here; less is centimetres.
_MILLIMETRES = 400.0


def wrong_units(clip_MTVC: NDArray[Any]) -> tuple[str, str] | None:
    """Return what is found instead of metres, and the fix; None for what a person can span.

    The measure is how far a body's joints reach along an axis, its median over the frames.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        body_TVC = clip_MTVC[0].astype(np.float64)
        span = float(np.median((body_TVC.max(axis=1) - body_TVC.min(axis=1)).max(axis=1)))
    if span <= MOST_METRES:
        return None
    unit, factor = ("millimetres", 1000) if span > _MILLIMETRES else ("centimetres", 100)
    return f"spans {span:.5g} in a frame, which are no metres", f"divide {unit} by {factor}"
