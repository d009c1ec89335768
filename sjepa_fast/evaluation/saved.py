# SPDX-License-Identifier: Apache-2.0
"""Results of a run's folder, read so that other scores of the same clips can be paired with them.

Shapes: S seeds, Q test clips.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sjepa_fast.errors import InputError
from sjepa_fast.opening import check_fields, read_json

# With the confusion matrix of as many classes as there may be; ten seeds' predictions on NTU-120
# xset have a tenth of it.
RESULT_BYTES = 2**26
# What is read of a result's file. Older ones have none of the last three.
_FIELDS = {
    **dict.fromkeys(("store_fingerprint", "split"), (str,)),
    "features": (int, type(None)),
    "request_sha256": (str, type(None)),
    "predicted": (list, type(None)),
}


@dataclass(frozen=True)
class Saved:
    """A result as far as it is compared with others; a split's clips have one order."""

    name: str
    store_fingerprint: str
    split: str
    predicted_SQ: Tensor
    features: int | None
    request: str | None  # fingerprint of what was asked, where no trained encoder is in it


def read_saved(folder: Path, name: str) -> Saved | None:
    """Read a result and its predictions; None if it is not there, or of a version without them.

    Raises InputError if the file is damaged.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    result: dict[str, Any] = dict.fromkeys(("features", "request_sha256", "predicted"))
    result |= read_json("run", path, RESULT_BYTES)
    check_fields("run", path, result, _FIELDS)
    if result["predicted"] is None:
        return None
    try:
        predicted = np.array(result["predicted"])
    except ValueError:  # lists of unlike lengths
        predicted = np.zeros(0)
    if predicted.ndim != 2 or predicted.dtype.kind != "i":
        value = f"{path} has predictions that are no lists of labels, one for each seed"
        raise InputError("run", value, "score that again")
    return Saved(
        name=name,
        store_fingerprint=result["store_fingerprint"],
        split=result["split"],
        predicted_SQ=torch.from_numpy(predicted),
        features=result["features"],
        request=result["request_sha256"],
    )
