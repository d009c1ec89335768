# SPDX-License-Identifier: Apache-2.0
"""Clips whose coordinates are not finite, named before they reach a network or a probe."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sjepa_fast.errors import InputError

_NAMED = 3


def check_finite(rows_RVC: Tensor, first_B: Tensor, names_B: Sequence[str] | np.ndarray) -> None:
    """Raise InputError, with the names, if clips have coordinates that are NaN or infinite.

    Args:
        rows_RVC: Rows of all clips, packed in their order, on any device.
        first_B: First row of each clip, int64 on the same device.
        names_B: Names of the clips, in the same order.

    Raises:
        InputError: Some coordinates are not finite.
    """
    if rows_RVC.numel() == 0:
        return
    # One pass without a copy: the least and the largest number are NaN if any number is.
    if not bool((~torch.isfinite(torch.stack(rows_RVC.aminmax()))).any()):
        return
    bad_R = ~torch.isfinite(rows_RVC).flatten(1).all(dim=1)
    rows = bad_R.nonzero().flatten()
    places = torch.unique(torch.searchsorted(first_B, rows, right=True) - 1).tolist()
    shown = ", ".join(repr(str(names_B[place])) for place in places[:_NAMED])
    more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
    value = f"coordinates of {shown}{more} are NaN or infinite"
    raise InputError("data.root", value, "leave these clips out, or mend them and prepare again")
