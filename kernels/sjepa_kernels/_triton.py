# SPDX-License-Identifier: Apache-2.0
"""Triton where it is installed; elsewhere stand-ins that let the kernels' files import.

The interpreter (`TRITON_INTERPRET=1`) is read when a kernel is decorated, so it must be set before
the package is imported.
"""

import os
from typing import Any

import torch

try:
    import triton
    import triton.language as tl

    HAVE_TRITON = True
except ImportError:
    HAVE_TRITON = False

    class _Absent:
        """Answers every attribute and call with itself: kernels decorate, but never launch."""

        def __getattr__(self, name: str) -> "_Absent":
            return self

        def __call__(self, *args: Any, **kwargs: Any) -> "_Absent":
            return self

    triton = tl = _Absent()

__all__ = [
    "HAVE_TRITON",
    "INTERPRETED",
    "TL_DTYPES",
    "cdiv",
    "compute_dtype",
    "device_scalar",
    "next_power_of_two",
    "row_block",
    "row_tile",
    "tl",
    "triton",
]

INTERPRETED = HAVE_TRITON and os.environ.get("TRITON_INTERPRET") == "1"

TL_DTYPES: dict[torch.dtype, Any] = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype arithmetic runs in: float64 for float64, otherwise float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def device_scalar(value: float | torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a 0-dim tensor on the device of `like`, in its compute dtype, without a host sync."""
    dtype = compute_dtype(like.dtype)
    if isinstance(value, torch.Tensor):
        return value.detach().to(device=like.device, dtype=dtype)
    return torch.full((), value, dtype=dtype, device=like.device)


def next_power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least n (1 for n = 0)."""
    return 1 << max(n - 1, 0).bit_length()


def row_block(width: int) -> int:
    """Return the block that holds a whole row: a power of two, 16 or more."""
    return max(next_power_of_two(width), 16)


def row_tile(width: int, elements: int) -> tuple[int, int, int]:
    """Return (rows, columns, warps) of a tile of whole rows, of about so many elements."""
    columns = row_block(width)
    return max(elements // columns, 1), columns, 8 if columns > 2048 else 4


def cdiv(a: int, b: int) -> int:
    """Return a / b rounded up."""
    return -(-a // b)
