# SPDX-License-Identifier: Apache-2.0
"""Reads `.npy` and `.npz` of strangers: what a header claims is checked before it is allocated.

No pickles, no structured types. Zip members are stored or deflated, have the size that their array
needs, and are read in pieces, so memory follows what is asked for and not what a file says.
"""

from __future__ import annotations

import io
import math
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.data.safe_files import open_regular
from sjepa_fast.opening import Unreadable, reason_of, regular_handle

Array = NDArray[Any]

HEADER_BYTES = 10_000  # as numpy
# Deflate can do 1000; joints padded with zeros reach some tens.
MOST_RATIO = 200
_RATIO_FROM = 64 * 2**20  # smaller members may be as dense as they like
_PIECE = 2**20
# Bytes of the header's length, of each version.
_WIDTHS = {1: 2, 2: 4}
# A header is Python's text of a dictionary. It is not given to Python's parser, which deep nesting
# can crash; what NumPy writes for plain arrays has these three entries.
_FIELDS = {
    "descr": r"'descr'\s*:\s*'([^']{1,20})'",
    "fortran_order": r"'fortran_order'\s*:\s*(True|False)",
    "shape": r"'shape'\s*:\s*\(((?:\s*\d{1,19}L?\s*,)*(?:\s*\d{1,19}L?)?)\s*\)",
}
_CODES = r"[<>|=]?(b1|[iu][1248]|f(2|4|8|16)|U[1-9]\d{0,8})"


@dataclass(frozen=True)
class Header:
    """What the header of a `.npy` says."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    start: int  # bytes before the first value

    @property
    def size(self) -> int:
        """Bytes of all values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self, data: bytes) -> Array:
        """Return the values, read-only."""
        flat: Array = np.frombuffer(data, dtype=self.dtype)
        return flat.reshape(self.shape, order="F" if self.fortran else "C")


@contextmanager
def _library(what: str) -> Iterator[None]:
    """Around one call of a library and nothing of ours.

    numpy and zipfile raise a dozen types for bad files, and more with each release.
    """
    try:
        yield
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(f"{what} ({reason_of(error)})") from error


def read_header(file: IO[bytes]) -> Header:
    """Read the header of a `.npy`. Raises Unreadable if it is none or holds more than numbers."""
    with _library("is no readable .npy"):
        magic = file.read(8)
        if magic[:6] != np.lib.format.MAGIC_PREFIX or len(magic) < 8 or magic[6] not in _WIDTHS:
            raise Unreadable("is no .npy of version 1 or 2")
        width = _WIDTHS[magic[6]]
        length = int.from_bytes(file.read(width), "little")
        if length > HEADER_BYTES:
            raise Unreadable(f"has a header of {length} bytes; at most {HEADER_BYTES} are read")
        text = file.read(length).decode("latin-1")
    found = {key: re.findall(pattern, text) for key, pattern in _FIELDS.items()}
    rest = text
    for pattern in _FIELDS.values():
        rest = re.sub(pattern, "", rest)
    if any(len(values) != 1 for values in found.values()) or rest.strip("{}, \n"):
        raise Unreadable("is no readable .npy (its header is none of plain values)")
    code, sizes = found["descr"][0], found["shape"][0].replace("L", "").split(",")
    if code in ("O", "|O"):
        raise Unreadable("holds Python objects, which need allow_pickle")
    if re.fullmatch(_CODES, code) is None:
        raise Unreadable(f"holds values of type {code}")
    shape = tuple(int(size) for size in sizes if size.strip())
    with _library("is no readable .npy"):
        dtype = np.dtype(code)
    return Header(shape, dtype, found["fortran_order"][0] == "True", 8 + width + length)


def _whole_file(file: IO[bytes]) -> Header:
    header = read_header(file)
    there = os.fstat(file.fileno()).st_size - header.start
    if header.size > there:
        raise Unreadable(f"ends early: {there} of {header.size} bytes")
    return header


def npy_shape(path: Path) -> tuple[int, ...]:
    """Return the shape that a `.npy` file says. Raises Unreadable if it is none."""
    with open_regular(path) as file:
        return read_header(file).shape


def load_npy(path: Path, most: int) -> Array:
    """Return the array of a `.npy` file, read-only.

    Raises Unreadable if it is none, ends early, or has more than `most` values.
    """
    with open_regular(path) as file:
        header = _whole_file(file)
        if math.prod(header.shape) > most:
            raise Unreadable(f"has shape {header.shape}, more than {most} values")
        with _library("cannot be read"):
            return header.array(file.read(header.size))


def map_npy(path: Path) -> Array:
    """Map a `.npy` file into memory, read-only.

    Raises Unreadable if it is none, is not as long as its header says, or is in Fortran order.
    """
    with open_regular(path) as file:
        header = _whole_file(file)
        if header.fortran and len(header.shape) > 1:
            raise Unreadable("is in Fortran order")
        if os.fstat(file.fileno()).st_size != header.start + header.size:
            raise Unreadable("is longer than its header says")
        with _library("cannot be mapped"):
            return np.memmap(file, header.dtype, "r", header.start, header.shape)


def texts_of(array: Array) -> list[str]:
    """Return the strings of an array of them. Raises Unreadable if one is no Unicode text."""
    if array.dtype.kind != "U":
        raise Unreadable(f"has {array.dtype} for text")
    native = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))
    codes = native.reshape(-1).view(np.uint32)
    if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
        raise Unreadable("holds text that is no Unicode")
    return [str(text) for text in native.reshape(-1).tolist()]


class _Pieces(io.BufferedReader):
    """A file that is not read in one go by whoever believes a size in it."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > 16 * _PIECE:
            raise Unreadable(f"wants {size} bytes at once")
        return super().read(size)


class Npz:
    """The arrays of an `.npz`; use it in a `with` block. All that is wrong raises Unreadable."""

    def __init__(self, path: Path) -> None:
        self._file = _Pieces(io.FileIO(regular_handle(path), closefd=True))
        self._size = os.fstat(self._file.fileno()).st_size
        try:
            with _library("is no readable .npz"):
                self._archive = zipfile.ZipFile(self._file)
        except Unreadable:
            self._file.close()
            raise
        self._count = Counter(info.filename for info in self._archive.infolist())
        self._headers: dict[str, Header] = {}

    def __enter__(self) -> Npz:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()
        self._file.close()

    def __contains__(self, name: str) -> bool:
        return f"{name}.npy" in self._count

    @contextmanager
    def _member(self, name: str) -> Iterator[IO[bytes]]:
        """Open a member behind its header."""
        member = f"{name}.npy"
        if self._count[member] != 1:
            raise Unreadable(f"holds {name} {self._count[member]} times")
        info = self._archive.getinfo(member)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Unreadable(f"{name} is compressed by method {info.compress_type}")
        with _library(f"{name} is damaged"):
            file = self._archive.open(info)
        with file:
            try:
                header = read_header(file)
            except Unreadable as error:
                raise Unreadable(f"{name} {error}") from error
            if header.start + header.size != info.file_size or info.compress_size > self._size:
                value = f"{name} has {info.file_size} bytes for {header.dtype} {header.shape}"
                raise Unreadable(value)
            self._headers[name] = header
            yield file

    def header(self, name: str) -> Header:
        """Return what a member's header says."""
        if name not in self._headers:
            with self._member(name):
                pass
        return self._headers[name]

    def load(self, name: str, most: int) -> Array:
        """Return one array of at most `most` bytes, read-only."""
        header = self.header(name)
        if header.size > most:
            raise Unreadable(f"{name} has {header.size} bytes; at most {most} are read")
        with self._member(name) as file, _library(f"{name} is damaged"):
            return header.array(_exactly(file, header.size, name))

    def check_ratio(self, name: str) -> None:
        """Refuse a member that grows as only a bomb does."""
        info = self._archive.getinfo(f"{name}.npy")
        if info.file_size > max(_RATIO_FROM, MOST_RATIO * info.compress_size):
            value = f"{name} grows from {info.compress_size} to {info.file_size} bytes"
            raise Unreadable(f"{value}; at most {MOST_RATIO} times are read")

    def blocks(self, name: str, counts: Iterable[int], most: int) -> Iterator[Array | None]:
        """Yield blocks of so many rows each, in order; the counts' sum is the number of rows.

        None stands for a block of more than `most` values, which is passed over.
        """
        header = self.header(name)
        values = math.prod(header.shape[1:])
        with self._member(name) as file:
            for count in counts:
                size = count * values * header.dtype.itemsize
                if count * values > most:
                    _pass_over(file, size, name)
                    yield None
                    continue
                rows = np.frombuffer(_exactly(file, size, name), dtype=header.dtype)
                yield rows.reshape(count, *header.shape[1:])


def _pieces(file: IO[bytes], size: int, name: str) -> Iterator[bytes]:
    left = size
    while left:
        with _library(f"{name} is damaged"):
            data = file.read(min(left, _PIECE))
        if not data:
            raise Unreadable(f"{name} ends early")
        left -= len(data)
        yield data


def _exactly(file: IO[bytes], size: int, name: str) -> bytes:
    parts = list(_pieces(file, size, name))
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _pass_over(file: IO[bytes], size: int, name: str) -> None:
    for _ in _pieces(file, size, name):
        pass
