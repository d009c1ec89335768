# SPDX-License-Identifier: Apache-2.0
"""Writes a store clip by clip, with bounded memory; an interrupted writer can be resumed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.data.clip_table import MAX_NAME, ClipTable
from sjepa_fast.data.journal import NAME as JOURNAL
from sjepa_fast.data.journal import Journal
from sjepa_fast.data.store import (
    JOINTS,
    MANIFEST,
    VERSION,
    Store,
    digest,
    fingerprint_of,
    open_store,
)
from sjepa_fast.data.store_schema import KEY, MAX_LISTED, PooledSet, is_store_name
from sjepa_fast.errors import InputError
from sjepa_fast.runtime.files import new_beside, sync
from sjepa_fast.skeletons import SkeletonLayout

# At most this much work is lost when a run is killed.
SYNC_SECONDS = 5.0


class StoreWriter:
    """Writes a store clip by clip with bounded memory; use it in a `with` block.

    Leaving the block without `finish` (or by an exception) leaves nothing behind, unless a `job` is
    named: then an interrupted or killed run leaves a hidden folder, from which a writer of the
    same job resumes.

    Args:
        out: Folder to make.
        name: Name of the data set.
        layout: Joints of every clip.
        class_names: One name per label.
        dtype: float32 or float16, the stored precision.
        overwrite: Replace an existing store.
        job: Names raw data and settings; empty for a store that is always begun afresh.

    Attributes:
        table: The clips and skipped inputs so far.
        done: Inputs that an earlier run of the same job has written or skipped.

    Raises:
        InputError: If `out` exists and may not be replaced, or cannot be written.
    """

    def __init__(
        self,
        out: Path,
        name: str,
        layout: SkeletonLayout,
        class_names: tuple[str, ...],
        *,
        dtype: str = "float32",
        overwrite: bool = False,
        job: str = "",
    ) -> None:
        if not is_store_name(name):
            fix = f"use at most {MAX_NAME} printable characters and no slash"
            raise InputError("name", repr(name), fix)
        self.out, self.name = out, name
        if out.exists() and not (overwrite and (out / MANIFEST).is_file()):
            raise InputError("out", f"{out} exists", "choose another, or --overwrite a store")
        self.table = ClipTable(layout, class_names, dtype)
        self.done = 0
        self.journal: Journal | None = None
        self.synced = time.monotonic()
        self.rows: IO[bytes]
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            if job:
                self.folder = out.parent / f".{out.name}.partial"
                self.folder.mkdir(exist_ok=True)
                self._resume(job)
            else:
                self.folder = new_beside(out, Path.mkdir)
                self.rows = (self.folder / JOINTS).open("wb")
                self._write_header()
        except OSError as error:
            fix = "choose a writable folder"
            raise InputError("out", f"{out}: {error.strerror}", fix) from error

    def _resume(self, job: str) -> None:
        self.journal = Journal(self.folder, job)
        for path in self.folder.iterdir():
            if path.name not in (JOINTS, JOURNAL):
                path.unlink()
        self.rows = (self.folder / JOINTS).open("r+b" if (self.folder / JOINTS).exists() else "w+b")
        self._write_header()
        row = self.table.layout.num_joints * 3 * self.table.dtype.itemsize
        head = self.rows.tell()
        there = (self.rows.seek(0, os.SEEK_END) - head) // row
        self.done = self.journal.replay(self.table, there)
        self.rows.truncate(head + self.table.joint_bytes())
        self.rows.seek(0, os.SEEK_END)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *raised: object) -> None:
        error = raised[1]
        # An interruption keeps the work done so far; bad input does not.
        outside = isinstance(error, KeyboardInterrupt | OSError | SystemExit)
        keep = self.journal is not None and outside
        if keep and isinstance(error, KeyboardInterrupt | SystemExit):
            self._sync_rows()
        with contextlib.suppress(OSError):
            self.rows.close()
        if self.journal is not None:
            self.journal.close()
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def add(
        self, name: str, clip_MTVC: NDArray[Any], label: int | None, meta: dict[str, int]
    ) -> None:
        """Append one clip that fits (`ClipTable.check`), or leave the store as it was."""
        entry = self.table.check(name, clip_MTVC, label, meta)
        self.rows.write(np.ascontiguousarray(clip_MTVC, dtype=self.table.dtype).tobytes())
        self.table.append(entry)
        self._note(entry)

    def skip(self, name: str, reason: str) -> None:
        """Record an input that is left out, with the reason."""
        self.table.skip(name, reason)
        self._note(self.table.skipped[-1])

    def _note(self, entry: tuple[object, ...]) -> None:
        if self.journal is None:
            return
        self.journal.note(entry)
        if time.monotonic() - self.synced >= SYNC_SECONDS:
            self._sync_rows()

    def _sync_rows(self) -> None:
        self.rows.flush()
        os.fsync(self.rows.fileno())
        if self.journal is not None:
            self.journal.sync()
        self.synced = time.monotonic()

    def finish(
        self,
        splits: dict[str, NDArray[np.int8]],
        command: str = "",
        *,
        fps: float = 0.0,
        sets: tuple[PooledSet, ...] = (),
    ) -> Store:
        """Write the arrays and the manifest, and move the store to its place.

        Each split has (N,) codes: 1 train, 2 test, 0 unused. The manifest says by which `command`
        the store was made, how many frames a second has (0: not known), and of which sets a pool
        is. Returns the store, opened. Raises InputError if no clip was added or a split does not
        fit the clips.
        """
        table = self.table
        if not table.names:
            why = f", the first because: {table.skipped[0][1]}" if table.skipped else ""
            value = f"no usable clip ({len(table.skipped)} skipped{why})"
            raise InputError("raw", value, "check --raw")
        for kind, keys in (("split", splits), ("column", table.meta)):
            for key in keys:
                if re.fullmatch(KEY, key) is None:
                    fix = f"name {kind}s with at most 100 letters, digits, _ and -"
                    raise InputError(kind, repr(key), fix)
        for key, codes in splits.items():
            if np.shape(codes) != (len(table.names),) or not np.isin(codes, (0, 1, 2)).all():
                fix = f"give {len(table.names)} codes: 1 train, 2 test, 0 unused"
                raise InputError("split", f"{key} has shape {np.shape(codes)}", fix)
        self._write_header()
        self.rows.close()
        rows = np.multiply(table.frames, table.bodies, dtype=np.int64)
        columns: dict[str, NDArray[Any]] = {
            "offsets": np.concatenate([[0], np.cumsum(rows)]).astype(np.int64),
            "frames": np.array(table.frames, dtype=np.int32),
            "bodies": np.array(table.bodies, dtype=np.int32),
            "labels": np.array(table.labels, dtype=np.int64),
            "names": np.array(list(table.names)),
        }
        columns |= {f"split_{k}": np.asarray(v, dtype=np.int8) for k, v in splits.items()}
        columns |= {f"meta_{k}": v for k, v in table.columns().items()}
        for key, column in columns.items():
            np.save(self.folder / f"{key}.npy", column, allow_pickle=False)
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": digest(path)}
            for path in sorted(self.folder.glob("*.npy"))
        }
        manifest: dict[str, Any] = {
            "version": VERSION,
            "name": self.name,
            "layout": table.layout.to_dict(),
            "class_names": list(table.class_names),
            "clips": len(table.names),
            "dtype": table.dtype.name,
            "command": command,
            "skipped": table.skipped[:MAX_LISTED],
            "skipped_count": len(table.skipped),
            "files": files,
        }
        if fps:
            manifest["fps"] = fps
        if sets:
            manifest["sets"] = [asdict(found) for found in sets]
        # As JSON gives it back, so that the checksum covers what a reader sees.
        manifest = json.loads(json.dumps(manifest))
        manifest["checksum"] = fingerprint_of(manifest)
        (self.folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in self.folder.iterdir():
            sync(path)
        sync(self.folder)
        self._move_into_place()
        return open_store(self.out, verify=False)

    def _move_into_place(self) -> None:
        # The old store is renamed first, so that one of the two is on disk at every moment.
        old = self.folder.with_name(f"{self.folder.name}.old")
        replaced = self.out.exists()
        if replaced:
            shutil.rmtree(old, ignore_errors=True)  # left by a run that was killed here
            self.out.replace(old)
        self.folder.replace(self.out)
        sync(self.out.parent)
        (self.out / JOURNAL).unlink(missing_ok=True)
        if replaced:
            shutil.rmtree(old)

    def _write_header(self) -> None:
        # NumPy pads the header for any row count, so it can be written again when that is known.
        header = {
            "descr": np.lib.format.dtype_to_descr(self.table.dtype),
            "fortran_order": False,
            "shape": (self.table.rows, self.table.layout.num_joints, 3),
        }
        self.rows.seek(0)
        np.lib.format.write_array_header_2_0(self.rows, header)
