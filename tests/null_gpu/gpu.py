"""What the null GPU was asked to do, from inside a process that runs on it.

The functions talk to the driver that is preloaded into this process; see README.md for what it
does. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

# In the order of the driver's enumeration, with what the sizes of a record are.
KINDS = (
    "kernel",  # of a library: grid x, y, z, block x, y, z, bytes of dynamic shared memory
    "triton",  # the same
    "gemm",  # m, n, k, batch; the name ends with the type of the first factor
    "copy",  # bytes; the name is a direction such as "HtoD pinned" or "DtoH pageable"
    "memset",  # bytes
    "sync",  # none: the host waits
    "malloc",  # bytes
    "free",  # bytes
    "graph_launch",  # nodes
    "library",  # none: an operation of cuDNN or cuSOLVER, or a function that the host runs
)


@dataclass(frozen=True)
class Record:
    """One call that reached the card; `stream` is -1 for a call of no stream."""

    kind: str
    name: str
    sizes: tuple[int, ...]
    stream: int
    captured: bool


@dataclass(frozen=True)
class Launch:
    """A launch of a Triton kernel: `values` are addresses of its arguments, valid during the hook.

    `stream` is the handle that cudaLaunchHostFunc takes.
    """

    name: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    values: ctypes.Array[ctypes.c_void_p] | ctypes._Pointer[ctypes.c_void_p]
    stream: int | None


class _Record(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int),
        ("stream", ctypes.c_int),
        ("captured", ctypes.c_int),
        ("count", ctypes.c_int),
        ("sizes", ctypes.c_long * 7),
        ("name", ctypes.c_char_p),
    )


_Hook = ctypes.CFUNCTYPE(
    None,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.c_uint,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_void_p,
)


@cache
def _driver() -> ctypes.CDLL:
    driver = ctypes.CDLL(None)
    if not hasattr(driver, "nullgpu_reset"):
        raise RuntimeError("this process is not on the null GPU: start it by -m tests.null_gpu")
    driver.nullgpu_records.argtypes = [ctypes.POINTER(_Record), ctypes.c_long]
    driver.nullgpu_records.restype = driver.nullgpu_mallocs.restype = ctypes.c_long
    driver.nullgpu_problem.argtypes = [ctypes.c_long]
    driver.nullgpu_problem.restype = ctypes.c_char_p
    driver.nullgpu_used.restype = driver.nullgpu_peak.restype = ctypes.c_size_t
    return driver


def available() -> bool:
    """Whether this process runs on the null GPU."""
    return hasattr(ctypes.CDLL(None), "nullgpu_reset")


def reset() -> None:
    """Forget all calls and problems so far; the peak begins again at what is in use."""
    _driver().nullgpu_reset()


def records() -> list[Record]:
    """Return the calls since the last reset, in their order."""
    count = _driver().nullgpu_records(None, 0)
    found = (_Record * count)()
    count = min(count, _driver().nullgpu_records(found, count))
    return [
        Record(
            KINDS[raw.kind],
            raw.name.decode(),
            tuple(raw.sizes[: raw.count]),
            raw.stream,
            bool(raw.captured),
        )
        for raw in found[:count]
    ]


def problems() -> list[str]:
    """Return what was refused since the last reset, and what is legal but hardly ever meant."""
    found: list[str] = []
    while (text := _driver().nullgpu_problem(len(found))) is not None:
        found.append(text.decode())
    return found


def used() -> int:
    """Return the bytes that are allocated on the card."""
    return int(_driver().nullgpu_used())


def peak() -> int:
    """Return the most bytes that were allocated on the card since the last reset."""
    return int(_driver().nullgpu_peak())


def mallocs() -> int:
    """Return how often memory of the card was allocated since the last reset."""
    return int(_driver().nullgpu_mallocs())


@contextlib.contextmanager
def zeros_read() -> Iterator[None]:
    """Let the host read zeros of the card, instead of what an earlier user of the memory left.

    No kernel computes, so a count that the host asks for would be garbage.
    """
    before = _driver().nullgpu_read_zeros(1)
    try:
        yield
    finally:
        _driver().nullgpu_read_zeros(before)


@contextlib.contextmanager
def launch_hook(hook: Callable[[Launch], None]) -> Iterator[None]:
    """Call `hook` after every accepted launch of a Triton kernel, captured or not.

    What it hands to cudaLaunchHostFunc on the launch's stream becomes part of a capture.
    """

    def call(name: bytes, shape: object, shared: int, values: object, stream: int | None) -> None:
        x, y, z, bx, by, bz = shape[:6]  # type: ignore[index]
        hook(Launch(name.decode(), (x, y, z), (bx, by, bz), shared, values, stream))  # type: ignore[arg-type]

    kept = _Hook(call)
    _driver().nullgpu_on_launch(kept)
    try:
        yield
    finally:
        _driver().nullgpu_on_launch(None)
