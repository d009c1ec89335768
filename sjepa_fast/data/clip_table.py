# SPDX-License-Identifier: Apache-2.0
"""The table of a store's clips (names, sizes, labels), and the checks of a new clip."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.errors import InputError
from sjepa_fast.names import printable
from sjepa_fast.skeletons import SkeletonLayout

# Of one store. Names are also bounded because an array of text is as wide as its longest.
MAX_CLIPS = 2**21
# The largest sets of signs have some 3,000 classes; a confusion matrix has the square.
MAX_CLASSES = 4_096
MOST_BODIES = 64
MAX_NAME = 255
MAX_REASON = 300
# Label of a clip that has none.
NO_LABEL = -1

# Name, bodies, frames, label and columns.
Entry = tuple[str, int, int, int, dict[str, int]]


def is_name(name: object) -> bool:
    """Whether it is text for a clip or class: short, and shown by a terminal as it is."""
    return isinstance(name, str) and 0 < len(name) <= MAX_NAME and name.isprintable()


class ClipTable:
    """Names, sizes, labels and columns of the clips so far, and what was left out."""

    def __init__(self, layout: SkeletonLayout, class_names: tuple[str, ...], dtype: str) -> None:
        for name in class_names:
            if not is_name(name):
                fix = f"use at most {MAX_NAME} printable characters"
                raise InputError("class_names", repr(name), fix)
        if len(class_names) > MAX_CLASSES:
            raise InputError("class_names", len(class_names), f"give at most {MAX_CLASSES}")
        self.layout, self.class_names, self.dtype = layout, class_names, np.dtype(dtype)
        self.names: dict[str, int] = {}
        self.frames: list[int] = []
        self.bodies: list[int] = []
        self.labels: list[int] = []
        self.meta: dict[str, list[int]] = {}
        self.skipped: list[tuple[str, str]] = []
        self.rows = 0

    def check(
        self, name: str, clip_MTVC: NDArray[Any], label: int | None, meta: dict[str, int]
    ) -> Entry:
        """Return the entry of a clip, (M, T, V, 3) metres, whose label is None if it has none.

        Raises InputError if the clip, its label or its columns do not fit.
        """
        if not is_name(name):
            fix = f"use 1 to {MAX_NAME} printable characters"
            raise InputError("name", repr(name), fix)
        expected = f"(bodies, frames, {self.layout.num_joints}, 3) of layout {self.layout.name}"
        shape = clip_MTVC.shape
        if len(shape) != 4 or shape[2:] != (self.layout.num_joints, 3) or 0 in shape:
            raise InputError("clip", f"{name} has shape {shape}", f"give {expected}")
        if shape[0] > MOST_BODIES:
            raise InputError("clip", f"{name} has {shape[0]} bodies", f"use at most {MOST_BODIES}")
        if not np.isfinite(clip_MTVC).all():
            raise InputError("clip", f"{name} has NaN or infinite joints", "repair or skip it")
        if np.abs(clip_MTVC).max() > np.finfo(self.dtype).max:
            fix = "give metres, or store float32"
            raise InputError("clip", f"{name} has values beyond {self.dtype.name}", fix)
        if label is not None and not 0 <= label < len(self.class_names):
            fix = f"use 0..{len(self.class_names) - 1}, or no label"
            raise InputError("label", f"{label} of clip {name}", fix)
        if name in self.names:
            raise InputError("name", f"{name} occurs twice", "give every clip its own name")
        if self.names and set(meta) != set(self.meta):
            raise InputError("meta", f"{sorted(meta)} of clip {name}", f"give {sorted(self.meta)}")
        for key, value in meta.items():
            if not -(2**63) <= value < 2**63:
                raise InputError("meta", f"{key} of clip {name}", "use numbers of 64 bits")
        if len(self.names) == MAX_CLIPS:
            raise InputError("clips", f"{name} is one more than {MAX_CLIPS}", "split the set")
        return (name, *shape[:2], NO_LABEL if label is None else label, meta)

    def append(self, entry: Entry) -> None:
        """Add what `check` returned."""
        name, bodies, frames, label, meta = entry
        self.names[name] = len(self.names)
        self.bodies.append(bodies)
        self.frames.append(frames)
        self.labels.append(label)
        for key, value in meta.items():
            self.meta.setdefault(key, []).append(int(value))
        self.rows += bodies * frames

    def add(
        self, name: str, clip_MTVC: NDArray[Any], label: int | None, meta: dict[str, int]
    ) -> None:
        """Check and append one clip; its joints are not kept. See `check`."""
        self.append(self.check(name, clip_MTVC, label, meta))

    def skip(self, name: str, reason: str) -> None:
        """Record an input that is left out, with the reason; both as they can be printed."""
        shown = printable(" ".join(reason.split()), MAX_REASON)
        self.skipped.append((printable(name, MAX_NAME), shown))

    def columns(self) -> dict[str, NDArray[np.int64]]:
        """The columns as arrays, one value per clip."""
        return {key: np.array(values, dtype=np.int64) for key, values in self.meta.items()}

    def joint_bytes(self) -> int:
        """Size of the clips' joints on disk."""
        return self.rows * self.layout.num_joints * 3 * self.dtype.itemsize
