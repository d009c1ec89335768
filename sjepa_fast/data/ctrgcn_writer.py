# SPDX-License-Identifier: Apache-2.0
"""Writes a store as the `.npz` that CTR-GCN and MAMP read (method 1.3), one clip at a time.

`x_train`, `y_train`, `x_test`, `y_test`: x is (N, frames, 150) float32, two bodies of 25 joints
side by side with zero frames at the end, y is one-hot. N clips, T frames.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.data.clip_table import NO_LABEL
from sjepa_fast.data.store import Store
from sjepa_fast.errors import InputError
from sjepa_fast.runtime.files import new_file

JOINTS, BODIES = 25, 2


def padded_row(clip_MTVC: NDArray[Any], frames: int, twin: bool) -> NDArray[np.float32]:
    """Lay one clip out as (frames, 150): one or two bodies of 25 joints, at most `frames` frames.

    With `twin` a lone body is written twice, as in the field's NTU-120 files; else the second body
    is zeros, as in its NTU-60 files.
    """
    row = np.zeros((frames, BODIES, JOINTS * 3), dtype=np.float32)
    bodies, length = clip_MTVC.shape[:2]
    row[:length, :bodies] = clip_MTVC.reshape(bodies, length, -1).transpose(1, 0, 2)
    if twin and bodies == 1:
        row[:, 1] = row[:, 0]
    return row.reshape(frames, -1)


def _member(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: str, rows: Iterator[Any]
) -> None:
    # np.savez would hold the whole array, 20 GB for NTU-120.
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for row in rows:
            file.write(np.ascontiguousarray(row, dtype=dtype).tobytes())


def _check(store: Store, ids: NDArray[np.int64], frames: int) -> None:
    if store.layout.num_joints != JOINTS:
        value = f"{store.name} has {store.layout.num_joints} joints"
        raise InputError("store", value, f"the format has {JOINTS}")
    for index in ids:
        if store.frames[index] > frames or store.bodies[index] > BODIES:
            value = f"{store.names[index]} has {store.frames[index]} frames, "
            value += f"{store.bodies[index]} bodies"
            fix = f"the format has {BODIES} bodies; raise --frames for longer clips"
            raise InputError("store", value, fix)
        if store.labels[index] == NO_LABEL:
            value = f"{store.names[index]} has no label"
            raise InputError("store", value, "the format needs one for every clip of the split")


def write_ctrgcn(store: Store, split: str, out: Path, frames: int, twin: bool) -> tuple[int, int]:
    """Write one split of a store of 25-joint clips to a `.npz`, which is replaced as a whole.

    The field's files have 300 `frames`; see `padded_row` for `twin`. Returns the number of training
    and of test clips.
    """
    parts = {part: store.ids(split, part) for part in ("train", "test")}
    for ids in parts.values():
        _check(store, ids, frames)
    classes = len(store.class_names)
    with new_file(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for part, ids in parts.items():
            rows = (padded_row(store.clip(i), frames, twin) for i in ids)
            shape = (len(ids), frames, BODIES * JOINTS * 3)
            _member(archive, f"x_{part}", shape, "<f4", rows)
            labels = (np.arange(classes) == store.labels[i] for i in ids)
            _member(archive, f"y_{part}", (len(ids), classes), "<f8", labels)
    return len(parts["train"]), len(parts["test"])
