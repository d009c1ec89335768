# SPDX-License-Identifier: Apache-2.0
"""Unpickles strangers' files of plain containers and NumPy arrays, and nothing else.

A pickle is a program. This machine knows containers, numbers, text and bytes; of functions it has
the six by which NumPy's arrays are pickled, written anew here, so no code of another library runs
at a file's word. Its steps, and what each may take, are bounded by the file's own size.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.opening import Unreadable, regular_handle

# A step makes some 100 bytes of objects, often from one byte; arrays need few steps for their size.
STEPS = 500_000
BYTES_PER_STEP = 32
_KINDS = r"[<>|=]?([biuf]\d{1,2}|U\d{1,4})"


class _DType:
    """A dtype as pickled: a code, and the byte order that its state adds."""

    def __init__(self, code: object, *_: object) -> None:
        self.code = code
        self.state: Any = None

    def resolve(self) -> np.dtype[Any]:
        order: Any = self.state[1] if isinstance(self.state, tuple) and len(self.state) > 1 else "="
        if not isinstance(self.code, str) or order not in ("<", ">", "|", "="):
            raise Unreadable("is of an unknown type")
        if re.fullmatch(_KINDS, self.code) is None:
            raise Unreadable(f"is of type {'object' if self.code[:1] == 'O' else self.code}")
        try:
            dtype: np.dtype[Any] = np.dtype(self.code)
        except TypeError as error:
            raise Unreadable(f"is of type {self.code}") from error
        return dtype if order == "|" else dtype.newbyteorder(order)


class PickledArray:
    """An array as pickled; nothing of it is believed until `values`."""

    def __init__(self, *_: object) -> None:
        self.state: Any = None
        self.axes: Any = None  # the order in which the shape's axes are named, if not theirs

    @property
    def held(self) -> int:
        """Bytes that came with it."""
        data = self.state[-1] if isinstance(self.state, tuple) and self.state else b""
        return len(data) if isinstance(data, bytes | bytearray) else 0

    def values(self, most: int) -> NDArray[Any]:
        """Return the array, read-only, of numbers or text.

        Raises Unreadable if it is of another type, has more than `most` values, or its parts do not
        fit.
        """
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise Unreadable("is no whole array")
        _, shape, dtype, fortran, data = self.state
        if not isinstance(dtype, _DType):
            raise Unreadable("is of an unknown type")
        kind = dtype.resolve()
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise Unreadable("has no shape")
        if len(shape) > 8 or max(math.prod(shape), *shape, 0) > most:
            raise Unreadable(f"has more than {most} values")
        size = math.prod(shape) * kind.itemsize
        if not isinstance(data, bytes | bytearray) or len(data) != size:
            raise Unreadable(f"has not the {size} bytes of its shape")
        # Text of no width has values but no bytes.
        flat = np.frombuffer(bytes(data), dtype=kind) if size else np.zeros(math.prod(shape), kind)
        array = flat.reshape(shape, order="F" if fortran else "C")
        return array if self.axes is None else array.transpose(_checked(self.axes, len(shape)))


def _checked(axes: Any, count: int) -> tuple[int, ...]:
    whole = isinstance(axes, tuple) and all(type(n) is int for n in axes)
    if not whole or sorted(axes) != list(range(count)):
        raise Unreadable("has axes that are not those of its shape")
    return tuple(axes)


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> PickledArray:
    array = PickledArray()
    # Order K: the shape is as in memory, and `axes` as what they were seen. Others are refused.
    known = order in ("C", "F") or (order == "K" and axes is not None)
    array.state = (1, shape if known else None, dtype, order == "F", data)
    array.axes = axes if order == "K" else None
    return array


def _scalar(dtype: Any, data: Any = b"") -> PickledArray:
    array = PickledArray()
    array.state = (1, (), dtype, False, data)
    return array


def _empty_dict(*given: object) -> dict[Any, Any]:
    # Of an OrderedDict or defaultdict; their items follow. A factory is not kept.
    if any(isinstance(part, dict | list | tuple) for part in given):
        raise pickle.UnpicklingError("a dictionary made of another")
    return {}


def _encode(text: Any, encoding: Any) -> bytes:
    # How protocol 2 writes bytes.
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("it encodes something else than bytes")
    return text.encode("latin-1")


_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_FUNCTIONS: dict[tuple[str, str], Any] = {
    **{(module, "_reconstruct"): PickledArray for module in _MODULES},
    **{(module, "scalar"): _scalar for module in _MODULES},
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _DType,
    ("collections", "OrderedDict"): _empty_dict,
    ("collections", "defaultdict"): _empty_dict,
    ("_codecs", "encode"): _encode,
}


def _check_keys(keys: Any) -> None:
    # Numbers, and tuples of them, can be made to collide, which takes hours.
    for key in keys:
        if type(key) is not str and not (type(key) is int and abs(key) < 2**60):
            raise pickle.UnpicklingError(f"a key or a set's member is a {type(key).__name__}")


# Protocol 2 and later, without the opcodes that make objects of classes or ask for other files.
_OPCODES = (
    "PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 "
    "BINFLOAT SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 SHORT_BINUNICODE BINUNICODE BINUNICODE8 "
    "EMPTY_LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE GLOBAL "
    "STACK_GLOBAL REDUCE BUILD LIST"
)
_Step = Callable[[Any], None]


def _counted(step: _Step, cost: int) -> _Step:
    def run(machine: Any) -> None:
        machine.steps -= cost
        if machine.steps < 0:
            raise pickle.UnpicklingError("it has too many steps for its size")
        step(machine)

    return run


# Python's own machine in Python: the one in C lets a number of four bytes allocate gigabytes.
_Python: Any = pickle._Unpickler


class _Machine(_Python):  # type: ignore[misc]
    def __init__(self, file: _Bounded) -> None:
        super().__init__(file)
        self.steps = STEPS + file.size // BYTES_PER_STEP
        self.bytes = 2 * file.size

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _FUNCTIONS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _FUNCTIONS[module, name]

    def load_build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if not isinstance(made, PickledArray | _DType):
            raise pickle.UnpicklingError(f"it changes a {type(made).__name__}")
        made.state = state

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("it calls without arguments")
        if function is _encode:
            # The same text a thousand times is a bomb.
            self.bytes -= len(arguments[0])
            if self.bytes < 0:
                raise pickle.UnpicklingError("it has more bytes than its file")
        self.stack[-1] = function(*arguments)

    def load_bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(size)))

    def load_setitem(self) -> None:
        _check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        _check_keys(self.stack[::2])
        super().load_setitems()

    def load_dict(self) -> None:
        _check_keys(self.stack[::2])
        super().load_dict()

    def load_additems(self) -> None:
        _check_keys(self.stack)
        super().load_additems()

    def load_frozenset(self) -> None:
        _check_keys(self.stack)
        super().load_frozenset()


_KNOWN = {getattr(pickle, name)[0] for name in _OPCODES.split()}
_OWN = {
    pickle.BUILD[0]: _Machine.load_build,
    pickle.REDUCE[0]: _Machine.load_reduce,
    pickle.BYTEARRAY8[0]: _Machine.load_bytearray8,
    pickle.SETITEM[0]: _Machine.load_setitem,
    pickle.SETITEMS[0]: _Machine.load_setitems,
    pickle.DICT[0]: _Machine.load_dict,
    pickle.ADDITEMS[0]: _Machine.load_additems,
    pickle.FROZENSET[0]: _Machine.load_frozenset,
}
# An empty set takes three times as much as others.
_COSTS = {pickle.EMPTY_SET[0]: 3, pickle.FROZENSET[0]: 3}
_Machine.dispatch = {
    code: _counted(step, _COSTS.get(code, 1))
    for code, step in (_Python.dispatch | _OWN).items()
    if code in _KNOWN
}


class _Bounded(io.BufferedReader):
    """A file that refuses to be read beyond its end before memory is taken for it."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(regular_handle(path), closefd=True))
        self.size = self.seek(0, io.SEEK_END)
        self.seek(0)

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > 2**16 and size > self.size - self.tell():
            raise pickle.UnpicklingError(f"it wants {size} bytes more than it has")
        return super().read(size)


def load_plain(path: Path) -> Any:
    """Unpickle a file; its arrays come as `PickledArray`.

    Raises Unreadable if there is none, it is damaged, or it asks for anything else.
    """
    with _Bounded(path) as file:
        try:
            return _Machine(file).load()
        except Exception as error:  # what a stranger's program may raise has no list
            raise Unreadable(
                f"is not safe or not whole ({error or type(error).__name__})"
            ) from error
