# SPDX-License-Identifier: Apache-2.0
"""Reads the tensors of PyTorch checkpoints from elsewhere, `torch.save`'s zip format.

Nothing in the file is run, and nothing is allocated that the file does not hold. PyTorch's own
restricted reader keeps code out, but makes a `bytearray` of any size at a file's word, views of a
few bytes as terabytes, and dies of a deeply nested key (seen with 2.13: four gigabytes for two
hundred bytes, and a segmentation fault).
"""

from __future__ import annotations

import io
import math
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sjepa_fast.errors import InputError
from sjepa_fast.opening import open_regular

# The pickle names tensors; a checkpoint with a thousand of them has a quarter of this.
PICKLE_BYTES = 2**20
_AT_ONCE = 64 * 2**20
_UNDAMAGED = "use an undamaged checkpoint"
# What `torch.save` writes, with protocol 2. Not here: sets, older and newer ways to call.
_OPCODES = (
    *("PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2"),
    *("LONG1", "BINFLOAT", "BINUNICODE", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS", "BINPUT"),
    *("LONG_BINPUT", "BINGET", "LONG_BINGET", "GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"),
)
_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class Stored:
    """A tensor as the file describes it: sizes fit the storage, and nothing has been read."""

    dtype: torch.dtype
    key: str
    elements: int  # of the storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Foreign:
    """An open checkpoint; use it in a `with` block.

    `content` is what was saved, with `Stored` for tensors, plain dicts for ordered ones and None
    for parsed arguments. Raises InputError if the file is no checkpoint, is damaged, would run
    code, or describes more than it holds.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: dict[str, bytearray] = {}
        self._file = _Pieces(open_regular("file", path))
        try:
            self._open()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Foreign:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()
        self._file.close()

    def _open(self) -> None:
        size = self._file.size
        if self._file.peek(4)[:4] != b"PK\x03\x04":
            fix = "if PyTorch before 1.6 wrote it, load and save it once with a newer one"
            raise self._refused("is no checkpoint in torch.save's zip format", fix)
        archive: zipfile.ZipFile = self._library(lambda: zipfile.ZipFile(self._file))
        self._archive, entries = archive, archive.infolist()
        names = [entry.filename for entry in entries]
        found = [name for name in names if name.endswith("/data.pkl")]
        if len(found) != 1 or len(set(names)) != len(names):
            raise self._refused("is no checkpoint of torch.save", _UNDAMAGED)
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise self._refused("is compressed", "save it with torch.save")
        held = sum(entry.file_size for entry in entries)
        if held > size or archive.getinfo(found[0]).file_size > PICKLE_BYTES:
            raise self._refused(f"claims {held} bytes, and has {size}", _UNDAMAGED)
        self._folder = found[0].removesuffix("data.pkl")
        if f"{self._folder}byteorder" in names and self._read("byteorder", 6) != b"little":
            raise self._refused("was written by a big-endian machine", "convert it there")
        data = self._read("data.pkl", PICKLE_BYTES)
        try:
            self.content: Any = _Reader(data).load()
        except Exception as error:
            # pickle raises a dozen types for damaged files.
            value = (
                f"is no checkpoint, or holds more than tensors and plain values ({error!r:.200})"
            )
            fix = "save its state dict alone: torch.save(model.state_dict(), FILE)"
            raise self._refused(value, fix) from error

    def tensor(self, stored: Stored) -> Tensor:
        """Read a tensor; those that share memory in the file share it here."""
        wanted = stored.elements * stored.dtype.itemsize
        if wanted == 0:
            return torch.empty(stored.size, dtype=stored.dtype)
        data = self._held.get(stored.key)
        if data is None:
            data = self._held[stored.key] = self._read(f"data/{stored.key}", wanted)
        if len(data) != wanted:
            raise self._refused(f"has {len(data)} of the {wanted} bytes of a tensor", _UNDAMAGED)
        flat = torch.frombuffer(data, dtype=stored.dtype)
        return flat.as_strided(stored.size, stored.stride, stored.offset)

    def _read(self, name: str, most: int) -> bytearray:
        """Read an entry, up to one byte more than `most`."""

        def pieces() -> bytearray:
            data = bytearray()
            with self._archive.open(self._folder + name) as entry:
                while len(data) <= most and (part := entry.read(2**20)):
                    data += part
            return data

        data: bytearray = self._library(pieces)
        return data

    def _library(self, call: Callable[[], Any]) -> Any:
        """Call zipfile, which raises many types for damaged files."""
        try:
            return call()
        except InputError:
            raise
        except Exception as error:
            raise self._refused(f"is no undamaged checkpoint ({error})", _UNDAMAGED) from error

    def _refused(self, value: str, fix: str) -> InputError:
        return InputError("file", f"{self._path} {value}", fix)


class _Pieces(io.BufferedReader):
    """A file of which no one reads more at once than there can be in a sound directory."""

    def __init__(self, file: io.FileIO) -> None:
        super().__init__(file)
        self.size = os.fstat(file.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _AT_ONCE:
            raise zipfile.BadZipFile(f"a directory of {size} bytes")
        return super().read(size)


# Python's unpickler in Python: the one in C makes a table of any size at a number's word.
_Machine: Any = pickle._Unpickler


class _Reader(_Machine):  # type: ignore[misc]
    """Knows the opcodes that `torch.save` writes, and the names that `_allowed` has."""

    def __init__(self, data: bytearray) -> None:
        super().__init__(io.BytesIO(data))
        self._allowed = _allowed()

    def find_class(self, module: str, name: str) -> Any:
        return self._allowed[f"{module}.{name}"]

    def persistent_load(self, saved: Any) -> tuple[torch.dtype, str, int]:
        what, dtype, key, _, elements = saved
        if what != "storage" or not isinstance(dtype, torch.dtype):
            raise ValueError("an unknown kind of storage")
        if type(key) is not str or type(elements) is not int or elements < 0:
            raise ValueError("a storage without name or size")
        return dtype, key, elements

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.put([key, value])

    def set_items(self) -> None:
        self.put(self.pop_mark())

    def put(self, items: list[Any]) -> None:
        if not all(map(_is_key, items[::2])):
            raise ValueError("a key that is no plain value")
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise ValueError("an item of what is no dict")
        target.update(zip(items[::2], items[1::2], strict=True))

    dispatch = {  # noqa: RUF012
        **{
            getattr(pickle, name)[0]: _Machine.dispatch[getattr(pickle, name)[0]]
            for name in _OPCODES
        },
        pickle.SETITEM[0]: set_item,
        pickle.SETITEMS[0]: set_items,
    }


def _is_key(key: Any) -> bool:
    # A key is hashed: a nested one may overflow the stack, and large numbers are made to collide.
    return key is None or type(key) is str or (type(key) is int and abs(key) < 2**60)


def _allowed() -> dict[str, Any]:
    """Return what a pickle may name, made anew for each, for it may set attributes."""

    class Plain(dict[Any, Any]):
        """An ordered dict, which torch gives an attribute; empty when it is made."""

        def __init__(self) -> None:
            super().__init__()

    class Arguments:
        """Parsed arguments, which the authors' scripts keep beside the weights."""

    def rebuild(
        storage: Any, offset: Any, size: Any, stride: Any, gradient: Any, hooks: Any, *_: Any
    ) -> Stored:
        dtype, key, elements = storage
        return checked(Stored(dtype, key, elements, offset, size, stride))

    def parameter(stored: Any, gradient: Any, hooks: Any) -> Any:
        return stored

    named = {
        "collections.OrderedDict": Plain,
        "argparse.Namespace": Arguments,
        "torch._utils._rebuild_tensor_v2": rebuild,
        "torch._utils._rebuild_parameter": parameter,
    }
    return named | {f"torch.{name}": dtype for name, dtype in _DTYPES.items()}


def checked(stored: Stored) -> Stored:
    """Return a description of a tensor if it fits its storage; raises ValueError if not."""
    numbers = (stored.offset, *stored.size, *stored.stride)
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("a tensor whose sizes are no whole numbers")
    if len(stored.size) != len(stored.stride):
        raise ValueError("a tensor with sizes and strides of two lengths")
    count = math.prod(stored.size)
    if count == 0:
        return stored
    last = sum((n - 1) * step for n, step in zip(stored.size, stored.stride, strict=True))
    if stored.offset + last >= stored.elements or count > stored.elements:
        raise ValueError(f"a tensor of {count} numbers in a storage of {stored.elements}")
    return stored
