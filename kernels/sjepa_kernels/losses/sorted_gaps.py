# SPDX-License-Identifier: Apache-2.0
"""Rows sorted and compared with quantiles, and each gap back at the place of its number.

Shapes: V views, K directions, N samples.
"""

import ctypes

import torch
from torch import Tensor

from sjepa_kernels._triton import next_power_of_two, tl, triton
from sjepa_kernels.native import LIBRARY

# Places have 12 bits of a key, and a row stays in registers.
_LONGEST = 4096


@triton.jit
def _sorted_gaps_kernel(x, quantiles, losses, gaps, N, NEEDS_GRAD: tl.constexpr, BN: tl.constexpr):
    """One row, sorted as 64-bit keys: the number's bits, made to rise with it, above its place.

    Of a float64 the place takes the last 12 bits, so numbers closer than 2^-40 of their size stay
    in order of place.
    """
    row = tl.program_id(0).to(tl.int64) * N
    n = tl.arange(0, BN)
    inside = n < N
    number = tl.load(x + row + n, mask=inside, other=0.0)
    # Both zeros are equal.
    number = tl.where(number == 0.0, 0.0, number)
    if number.dtype == tl.float64:
        bits = number.to(tl.int64, bitcast=True)
        key = ((bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)) & -4096) | n
    else:
        bits = number.to(tl.int32, bitcast=True)
        key = ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) << 32) | n
    # The largest key, so what is outside ends up there.
    key = tl.sort(tl.where(inside, key, 0x7FFFFFFFFFFFFFFF))
    place = row + (key & 4095)
    gap = tl.load(x + place, mask=inside, other=0.0) - tl.load(
        quantiles + n, mask=inside, other=0.0
    )
    tl.store(losses + tl.program_id(0), tl.sum(gap * gap, axis=0))
    if NEEDS_GRAD:
        tl.store(gaps + place, gap, mask=inside)


def sorted_gaps(
    x_VKN: Tensor, quantiles_N: Tensor, needs_grad: bool, impl: str
) -> tuple[Tensor, Tensor]:
    """Return the rows' sums of squared gaps, sorted numbers less quantiles, and the gaps.

    Args:
        x_VKN: Rows of numbers, float32 or float64.
        quantiles_N: What they should be when sorted.
        needs_grad: Whether the gaps are wanted.
        impl: "triton" or "cpu", the latter for float32.

    Returns:
        (V, K), float64, and (V, K, N), each gap at the place of its number, or empty.
    """
    samples = x_VKN.shape[2]
    x_VKN = x_VKN.contiguous()
    gaps = x_VKN.new_empty(x_VKN.shape if needs_grad else (0,))
    losses = x_VKN.new_empty(x_VKN.shape[:2], dtype=torch.float64)
    if impl == "cpu":
        _on_cpu(x_VKN, quantiles_N, losses, gaps)
    elif samples <= _LONGEST:
        block = max(next_power_of_two(samples), 2)
        # 16 numbers a thread at most.
        warps = min(max(block // 512, 1), 8)
        # A pointer that the constexpr flag switches off still needs a tensor to stand for it.
        _sorted_gaps_kernel[(losses.numel(),)](
            x_VKN, quantiles_N, losses, gaps, samples, NEEDS_GRAD=needs_grad, BN=block,
            num_warps=warps,
        )  # fmt: skip
    else:
        numbers, place = x_VKN.sort(dim=-1, stable=True)
        numbers -= quantiles_N
        losses = numbers.square().sum(dim=-1, dtype=torch.float64)
        if needs_grad:
            gaps.scatter_(-1, place, numbers)
    return losses, gaps


def _on_cpu(x_VKN: Tensor, quantiles_N: Tensor, losses: Tensor, gaps: Tensor) -> None:
    """The C++ form (csrc/sorted_gaps.cpp)."""
    assert LIBRARY is not None
    samples, threads = x_VKN.shape[2], torch.get_num_threads()
    scratch = torch.empty((threads, 2, samples), dtype=torch.int64)
    LIBRARY.sjepa_sorted_gaps_f32(
        _pointer(x_VKN), _pointer(quantiles_N), ctypes.c_int64(losses.numel()),
        ctypes.c_int64(samples), _pointer(losses), _pointer(gaps) if gaps.numel() else None,
        _pointer(scratch), ctypes.c_int(threads),
    )  # fmt: skip


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
