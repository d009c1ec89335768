"""Device memory of the null GPU, read and written by the host: there it is ordinary memory.

Unused memory is filled with bytes of ones: NaN in every floating type, -1 in every integer.
"""

from __future__ import annotations

import bisect
import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_POISON = 0xFF


def extent(x: Tensor) -> tuple[int, int]:
    """First address of a tensor, and the one behind its last element."""
    if x.numel() == 0:
        return x.data_ptr(), x.data_ptr()
    last = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()


def alias(x: Tensor) -> Tensor:
    """A CPU tensor over the same addresses, which does not keep the memory of `x` alive."""
    start, end = extent(x)
    if start == end:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)
    memory = (ctypes.c_char * (end - start)).from_address(start)
    return torch.frombuffer(memory, dtype=x.dtype).as_strided(x.shape, x.stride())


def poison(x: Tensor) -> None:
    """Fill the elements of a tensor, on any device, as if they had never been written."""
    seen = alias(x)
    if seen.numel():
        # The bytes between elements belong to others, so no memset of the whole stretch.
        whole = seen.is_contiguous()
        seen.view(-1).view(torch.uint8).fill_(_POISON) if whole else _poison_strided(seen)


def _poison_strided(seen: Tensor) -> None:
    ones = torch.full((seen.element_size(),), _POISON, dtype=torch.uint8)
    seen.copy_(ones.view(seen.dtype).squeeze(0))


class DeviceMemory:
    """What the caching allocator holds at the moment: its segments and their free blocks."""

    def __init__(self) -> None:
        snapshot: list[dict[str, Any]] = torch.cuda.memory_snapshot()
        segments = sorted((s["address"], s["address"] + s["total_size"]) for s in snapshot)
        self.starts = [start for start, _ in segments]
        self.ends = [end for _, end in segments]
        self.free = [
            (block["address"], block["size"])
            for segment in snapshot
            for block in segment["blocks"]
            if block["state"] == "inactive"
        ]

    def poison_free(self) -> None:
        """Fill every free block, of the common pool and of the pools of graphs."""
        for address, size in self.free:
            ctypes.memset(address, _POISON, size)

    def holds(self, start: int, end: int) -> bool:
        """Whether the addresses from `start` up to `end` lie in one segment."""
        i = bisect.bisect_right(self.starts, start) - 1
        return i >= 0 and end <= self.ends[i]

    def strays(self, addresses: np.ndarray, size: int) -> np.ndarray:
        """Those of the addresses at which no element of `size` bytes lies in a segment."""
        if not self.starts:
            return addresses
        i = np.searchsorted(np.array(self.starts, dtype=np.uint64), addresses, side="right")
        ends = np.array(self.ends, dtype=np.uint64)[np.maximum(i, 1) - 1]
        return addresses[(i == 0) | (addresses > ends - np.uint64(size))]


def check_all_held(memory: DeviceMemory, what: str, stretches: Sequence[tuple[int, int]]) -> None:
    """Raise StaleAddress if one of the stretches, which `what` uses, is no device memory now."""
    for start, end in stretches:
        if start < end and not memory.holds(start, end):
            raise StaleAddress(f"{what}: {start:#x} to {end:#x} is no longer device memory")


class StaleAddress(RuntimeError):
    """Memory is used that was given back to the driver, where a GPU would fault."""
