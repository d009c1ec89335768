# SPDX-License-Identifier: Apache-2.0
"""Rows of chosen clips, read from a store's file into one packed array, in any process.

Positional reads, not memory mapping: no process's memory grows with the store, and a truncated file
raises an error that names it, where a mapped one would kill the reader with a signal.

Shapes: R rows (all bodies' frames packed), N clips of the store, S samples (clips, or single
bodies of them), B samples of a batch, V joints, C coordinates.
"""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sjepa_fast.config.schema import DataConfig
from sjepa_fast.data.normalize import normalize_clip
from sjepa_fast.data.store import JOINTS, Store
from sjepa_fast.errors import InputError
from sjepa_fast.skeletons import SkeletonLayout

Ids = NDArray[np.int64]


class PackedRows(NamedTuple):
    """The rows of a few samples back to back, on the host."""

    rows_RVC: Tensor
    first_B: Tensor
    """First row of each sample, int64."""
    ids_B: Tensor
    """The samples, int64."""


def normalizes(data: DataConfig) -> bool:
    """Return whether any normalisation is switched on; rows then are float32."""
    return data.center or data.align_spine or data.align_yaw or data.normalize_size


def normalize_rows(
    rows_RVC: NDArray[Any], bodies: int, layout: SkeletonLayout, data: DataConfig
) -> NDArray[np.float32]:
    """Normalise the rows of one whole clip as configured; a clip's first body sets the frame."""
    clip = rows_RVC.astype(np.float32).reshape(bodies, -1, *rows_RVC.shape[1:])
    return normalize_clip(
        clip,
        layout,
        center=data.center,
        align_yaw=data.align_yaw,
        size=data.normalize_size,
        spine=data.align_spine,
    ).reshape(rows_RVC.shape)


@dataclass(frozen=True, eq=False)
class RowReader:
    """Reads rows of samples; a sample is a run of rows inside those of its clip.

    It can be pickled, and is small: a process that does not inherit the open file opens it again.
    """

    path: Path  # the file of all rows
    skip: int  # bytes before the first row
    dtype: np.dtype[Any]
    layout: SkeletonLayout
    data: DataConfig  # which normalisations are on
    clips_N: NDArray[np.int64]  # (N + 1,) first row of each clip, and the end
    bodies_N: NDArray[np.int64]  # (N,) bodies of each clip
    clip_S: NDArray[np.int64]  # (S,) the clip each sample is of
    first_S: NDArray[np.int64]  # (S,) first row of each sample in the file
    rows_S: NDArray[np.int64]  # (S,) rows of each sample

    @staticmethod
    def of(store: Store, data: DataConfig) -> RowReader:
        """Open the file of a store's rows for reading; every clip is a sample.

        Raises InputError if this system cannot read at a position of a file.
        """
        if not hasattr(os, "preadv"):
            fix = "use --data.backend resident"
            raise InputError("data.backend", f"{data.backend} needs Linux or macOS", fix)
        mapped = store.joints
        assert isinstance(mapped, np.memmap) and isinstance(mapped.offset, int)
        clips = np.array(store.offsets, dtype=np.int64)
        reader = RowReader(
            path=store.root / JOINTS,
            skip=mapped.offset,
            dtype=mapped.dtype,
            layout=store.layout,
            data=data,
            clips_N=clips,
            bodies_N=np.array(store.bodies, dtype=np.int64),
            clip_S=np.arange(len(store), dtype=np.int64),
            first_S=clips[:-1],
            rows_S=np.diff(clips),
        )
        # Opened before any worker is forked: all read this file, even if it is removed meanwhile.
        _ = reader._file
        return reader

    @cached_property
    def _file(self) -> int:
        handle = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, handle)
        return handle

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_file"}

    def split_bodies(self) -> RowReader:
        """Return a reader whose samples are the single bodies, in the order clip, body."""
        clip_S = np.repeat(np.arange(len(self.bodies_N)), self.bodies_N)
        rows_S = (np.diff(self.clips_N) // self.bodies_N)[clip_S]
        # Bodies follow each other without a gap, so all rows before a body are other bodies'.
        return replace(self, clip_S=clip_S, first_S=np.cumsum(rows_S) - rows_S, rows_S=rows_S)

    @property
    def rows_dtype(self) -> torch.dtype:
        """Precision of the rows that `read` returns."""
        stored = np.zeros(0, np.float32 if normalizes(self.data) else self.dtype)
        return torch.from_numpy(stored).dtype

    def read(self, ids_B: Ids) -> PackedRows:
        """Read samples, which may repeat, and normalise them as configured.

        Returns their rows, packed in this order. Raises OSError if the file cannot be read or has
        become too short.
        """
        rows_B = self.rows_S[ids_B]
        first_B = np.cumsum(rows_B) - rows_B
        shape = (int(rows_B.sum()), self.layout.num_joints, 3)
        packed = torch.empty(shape, dtype=self.rows_dtype)
        for sample, first, rows in zip(ids_B, first_B, rows_B, strict=True):
            self._read_sample(int(sample), packed.numpy()[first : first + rows])
        return PackedRows(packed, torch.from_numpy(first_B), torch.from_numpy(ids_B))

    def _read_sample(self, sample: int, out: NDArray[Any]) -> None:
        first = int(self.first_S[sample])
        if not normalizes(self.data):
            self._read_rows(first, out)
            return
        clip = int(self.clip_S[sample])
        begin, end = (int(row) for row in self.clips_N[clip : clip + 2])
        whole = np.empty((end - begin, *out.shape[1:]), self.dtype)
        self._read_rows(begin, whole)
        normal = normalize_rows(whole, int(self.bodies_N[clip]), self.layout, self.data)
        out[:] = normal[first - begin : first - begin + len(out)]

    def _read_rows(self, first: int, out: NDArray[Any]) -> None:
        raw = out.reshape(-1).view(np.uint8)
        begin = self.skip + first * out[0].nbytes
        done = 0
        while done < len(raw):
            got = os.preadv(self._file, [raw[done:].data], begin + done)
            if got == 0:
                raise OSError(
                    f"{self.path} ends before byte {begin + len(raw)}: the store was altered "
                    "during the run; prepare it again and add --resume auto"
                )
            done += got


def worker_failed(reason: str) -> ChildProcessError:
    """Return the error to raise when a data worker process died, with the loader's reason."""
    fix = "if memory ran out, lower data.workers or data.prefetch"
    return ChildProcessError(f"a data worker failed: {reason}; {fix}")
