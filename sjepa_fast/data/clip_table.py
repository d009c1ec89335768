"""The table of a store's clips (names, sizes, labels), and the checks of a new clip."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.errors import InputError
from sjepa_fast.skeletons import SkeletonLayout

Entry = tuple[str, int, int, int, dict[str, int]]


class ClipTable:
    """Names, sizes, labels and columns of the clips so far, and what was left out."""

    def __init__(self, layout: SkeletonLayout, class_names: tuple[str, ...], dtype: str) -> None:
        self.layout, self.class_names, self.dtype = layout, class_names, np.dtype(dtype)
        self.names: dict[str, int] = {}
        self.frames: list[int] = []
        self.bodies: list[int] = []
        self.labels: list[int] = []
        self.meta: dict[str, list[int]] = {}
        self.skipped: list[tuple[str, str]] = []
        self.rows = 0

    def check(self, name: str, clip_MTVC: NDArray[Any], label: int, meta: dict[str, int]) -> None:
        """Raise InputError if a clip, (M, T, V, 3) metres, its label or its columns do not fit."""
        expected = f"(bodies, frames, {self.layout.num_joints}, 3) of layout {self.layout.name}"
        shape = clip_MTVC.shape
        if len(shape) != 4 or shape[2:] != (self.layout.num_joints, 3) or 0 in shape:
            raise InputError("clip", f"{name} has shape {shape}", f"give {expected}")
        if not np.isfinite(clip_MTVC).all():
            raise InputError("clip", f"{name} has NaN or infinite joints", "repair or skip it")
        if np.abs(clip_MTVC).max() > np.finfo(self.dtype).max:
            fix = "give metres, or store float32"
            raise InputError("clip", f"{name} has values beyond {self.dtype.name}", fix)
        if not 0 <= label < len(self.class_names):
            fix = f"use 0..{len(self.class_names) - 1}"
            raise InputError("label", f"{label} of clip {name}", fix)
        if name in self.names:
            raise InputError("name", f"{name} occurs twice", "give every clip its own name")
        if self.names and set(meta) != set(self.meta):
            raise InputError("meta", f"{sorted(meta)} of clip {name}", f"give {sorted(self.meta)}")

    def append(self, entry: Entry) -> None:
        """Add (name, bodies, frames, label, columns) of a clip that was checked."""
        name, bodies, frames, label, meta = entry
        self.names[name] = len(self.names)
        self.bodies.append(bodies)
        self.frames.append(frames)
        self.labels.append(label)
        for key, value in meta.items():
            self.meta.setdefault(key, []).append(int(value))
        self.rows += bodies * frames

    def add(self, name: str, clip_MTVC: NDArray[Any], label: int, meta: dict[str, int]) -> None:
        """Check and append one clip; its joints are not kept. See `check`."""
        self.check(name, clip_MTVC, label, meta)
        self.append((name, *clip_MTVC.shape[:2], label, meta))

    def skip(self, name: str, reason: str) -> None:
        """Record an input that is left out, with the reason."""
        self.skipped.append((name, " ".join(reason.split())))

    def columns(self) -> dict[str, NDArray[np.int64]]:
        """The columns as arrays, one value per clip."""
        return {key: np.array(values, dtype=np.int64) for key, values in self.meta.items()}

    def joint_bytes(self) -> int:
        """Size of the clips' joints on disk."""
        return self.rows * self.layout.num_joints * 3 * self.dtype.itemsize
