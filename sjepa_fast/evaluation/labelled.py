# SPDX-License-Identifier: Apache-2.0
"""Whether a split can be scored: its training and its test part both need clips with labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.data.clip_table import NO_LABEL
from sjepa_fast.data.store import Store
from sjepa_fast.errors import InputError

_FIX = "give labels in labels.csv and prepare the clips again (docs/data.md)"


def lacking(store: Store, split: str) -> InputError | None:
    """Return what a split lacks to be scored, as an error with the fix; None if nothing."""
    if (np.asarray(store.labels) == NO_LABEL).all():
        return InputError("data.root", f"no clip of {store.name} has a label", _FIX)
    if len(store.ids(split, "test")) == 0:
        return InputError("data.split", f"{split} has no test clip", "use another split")
    for part in ("train", "test"):
        if len(store.labelled(split, part)) == 0:
            value = f"no {part} clip of {split} has a label"
            return InputError("data.split", value, f"use another split, or {_FIX}")
    return None


def labelled_parts(store: Store, split: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the ids of the training and the test clips of a split that have a label.

    Raises InputError if one of the parts has none.
    """
    error = lacking(store, split)
    if error is not None:
        raise error
    return store.labelled(split, "train"), store.labelled(split, "test")
