"""The packed ragged store: one folder of memory-mapped arrays and a manifest.

Rows of clip i are `offsets[i]:offsets[i+1]` of `joints` (R, V, 3), body-major: body m of frame t
is row `offsets[i] + m * frames[i] + t`. Metres, y up. The manifest holds the layout, the class
names and the size and SHA-256 of every file; it is written last, in a hidden folder that is then
renamed, so a half-written store does not exist.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.data.clip_table import ClipTable, Entry
from sjepa_fast.data.journal import NAME as JOURNAL
from sjepa_fast.data.journal import Journal
from sjepa_fast.errors import InputError
from sjepa_fast.skeletons import SkeletonLayout

VERSION = 1
MANIFEST = "store.json"
JOINTS = "joints.npy"
# How much work a killed run may lose.
SYNC_SECONDS = 5.0
_ARRAYS = ("joints", "offsets", "frames", "bodies", "labels", "names")
_PARTS = {"train": 1, "test": 2}


@dataclass(frozen=True)
class Store:
    """An open store; the arrays are memory-mapped and read-only.

    Attributes:
        root: Its folder.
        name: Name of the data set.
        layout: Joints.
        class_names: One name a label.
        joints: (R, V, 3) float32 or float16, metres, y up.
        offsets: (N + 1,) first row of each clip, and the end.
        frames: (N,) T of each clip.
        bodies: (N,) M of each clip.
        labels: (N,) from 0.
        names: (N,) unique clip names.
        splits: For each split (N,) int8: 1 train, 2 test, 0 unused.
        meta: Further (N,) columns such as subject and camera.
        fingerprint: SHA-256 over the file table; names the content of the data set.
        skipped: (clip, reason) of inputs that were left out when the store was made.
    """

    root: Path
    name: str
    layout: SkeletonLayout
    class_names: tuple[str, ...]
    joints: NDArray[Any]
    offsets: NDArray[np.int64]
    frames: NDArray[np.int32]
    bodies: NDArray[np.int32]
    labels: NDArray[np.int64]
    names: NDArray[np.str_]
    splits: dict[str, NDArray[np.int8]]
    meta: dict[str, NDArray[Any]]
    fingerprint: str
    skipped: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def max_bodies(self) -> int:
        """Largest M of any clip."""
        return int(self.bodies.max())

    def clip(self, index: int) -> NDArray[Any]:
        """Return one clip as (M, T, V, 3)."""
        rows = self.joints[self.offsets[index] : self.offsets[index + 1]]
        shape = (int(self.bodies[index]), int(self.frames[index]), *rows.shape[1:])
        return np.asarray(rows).reshape(shape)

    def ids(self, split: str, part: str) -> NDArray[np.int64]:
        """Return the clip indices of one part of a split.

        Args:
            split: One of `splits`.
            part: train or test.

        Returns:
            Indices in rising order.

        Raises:
            InputError: If split or part does not exist, or the training part is empty.
        """
        if part not in _PARTS:
            raise InputError("part", part, f"use {' or '.join(_PARTS)}")
        if split not in self.splits:
            raise InputError("data.split", split, f"{self.name} has {', '.join(self.splits)}")
        found = np.nonzero(self.splits[split] == _PARTS[part])[0]
        if part == "train" and len(found) == 0:
            raise InputError("data.split", f"{split} has no training clip", "use another split")
        return found


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fingerprint(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _damaged(root: Path, what: str) -> InputError:
    return InputError("data.root", f"{root}: {what}", "run sjepa_fast.prepare again")


def open_store(root: Path, *, verify: bool = True) -> Store:
    """Open a store.

    Args:
        root: Its folder.
        verify: Also compare every file with its checksum (reads everything once).

    Returns:
        The store, memory-mapped.

    Raises:
        InputError: If there is no store, it has another version, or a file is missing, truncated
            or altered.
    """
    root = Path(root)
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        fix = f"run: python -m sjepa_fast.prepare NAME --raw DIR --out {root}"
        raise InputError("data.root", f"{root} has no store", fix) from error
    except (OSError, ValueError) as error:
        raise _damaged(root, f"{MANIFEST} is unreadable ({error})") from error
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if version != VERSION:
        fix = f"this release reads version {VERSION}; prepare the data again"
        raise InputError("data.root", f"{root} is a store of version {version}", fix)
    checksum = manifest.pop("checksum", None)
    if checksum not in (None, _fingerprint(manifest)):
        raise _damaged(root, f"{MANIFEST} does not match its checksum")
    files: dict[str, Any] = manifest["files"]
    lacking = [name for name in _ARRAYS if f"{name}.npy" not in files]
    if lacking:
        raise _damaged(root, f"{MANIFEST} lists no {', '.join(lacking)}")
    arrays: dict[str, NDArray[Any]] = {}
    for name, entry in files.items():
        path = root / name
        if not path.is_file():
            raise _damaged(root, f"{name} is missing")
        if path.stat().st_size != entry["bytes"]:
            raise _damaged(root, f"{name} has {path.stat().st_size} of {entry['bytes']} bytes")
        if verify and _digest(path) != entry["sha256"]:
            raise _damaged(root, f"{name} does not match its checksum")
        arrays[path.stem] = np.load(path, mmap_mode="r", allow_pickle=False)
    return Store(
        root=root,
        name=manifest["name"],
        layout=SkeletonLayout.from_dict(manifest["layout"]),
        class_names=tuple(manifest["class_names"]),
        **{name: arrays[name] for name in _ARRAYS},
        splits={k.removeprefix("split_"): v for k, v in arrays.items() if k.startswith("split_")},
        meta={k.removeprefix("meta_"): v for k, v in arrays.items() if k.startswith("meta_")},
        fingerprint=_fingerprint(files),
        skipped=tuple((clip, reason) for clip, reason in manifest["skipped"]),
    )


class StoreWriter:
    """Writes a store clip by clip with bounded memory; use it in a `with` block.

    Leaving the block without `finish` (or by an exception) leaves nothing behind, unless a `job` is
    named: then an interrupted or killed run leaves a hidden folder, and a writer of the same job
    goes on from it.

    Args:
        out: Folder to make.
        name: Name of the data set.
        layout: Joints of every clip.
        class_names: One name a label.
        dtype: float32 or float16, the stored precision.
        overwrite: Replace an existing store.
        job: Names raw data and settings; empty for a store that is always begun afresh.

    Attributes:
        table: What is known of the clips so far.
        done: Inputs that an earlier run of the same job took in, to be passed over.

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
                self.folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What stops a run from outside keeps the work done so far; bad input does not.
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

    def add(self, name: str, clip_MTVC: NDArray[Any], label: int, meta: dict[str, int]) -> None:
        """Append one clip.

        Args:
            name: Unique name.
            clip_MTVC: (M, T, V, 3) metres, y up.
            label: From 0.
            meta: The same columns for every clip.

        Raises:
            InputError: If the clip does not fit the layout or holds a bad value; the store is as
                it was before.
        """
        self.table.check(name, clip_MTVC, label, meta)
        self.rows.write(np.ascontiguousarray(clip_MTVC, dtype=self.table.dtype).tobytes())
        entry: Entry = (name, *clip_MTVC.shape[:2], label, meta)
        self.table.append(entry)
        self._note(entry)

    def skip(self, name: str, reason: str) -> None:
        """Record an input that is left out, so that it is never silent."""
        self.table.skip(name, reason)
        self._note((name, reason))

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

    def finish(self, splits: dict[str, NDArray[np.int8]], command: str = "") -> Store:
        """Write the arrays and the manifest, and move the store to its place.

        Args:
            splits: For each split (N,) with 1 train, 2 test, 0 unused.
            command: How it was made, for the manifest.

        Returns:
            The finished store, opened.

        Raises:
            InputError: If no clip was added or a split does not fit the clips.
        """
        table = self.table
        if not table.names:
            why = f", the first because: {table.skipped[0][1]}" if table.skipped else ""
            value = f"no usable clip ({len(table.skipped)} skipped{why})"
            raise InputError("raw", value, "check --raw")
        for key, codes in splits.items():
            if re.fullmatch(r"[\w-]+", key) is None:
                raise InputError("split", repr(key), "name splits with letters, digits, _ and -")
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
            path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)}
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
            "skipped": table.skipped,
            "files": files,
        }
        # As JSON will give it back, so that the checksum is of what a reader sees.
        manifest = json.loads(json.dumps(manifest))
        manifest["checksum"] = _fingerprint(manifest)
        (self.folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in self.folder.iterdir():
            _sync(path)
        self.folder.chmod(0o755)
        _sync(self.folder)
        self._move_into_place()
        return open_store(self.out, verify=False)

    def _move_into_place(self) -> None:
        # The old store steps aside first, so that no moment has neither of the two on disk.
        old = self.folder.with_name(f"{self.folder.name}.old")
        replaced = self.out.exists()
        if replaced:
            shutil.rmtree(old, ignore_errors=True)  # of a run that was killed right here
            self.out.replace(old)
        self.folder.replace(self.out)
        _sync(self.out.parent)
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
