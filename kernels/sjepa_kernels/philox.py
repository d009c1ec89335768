# SPDX-License-Identifier: Apache-2.0
"""Counter-based random numbers: Philox4x32-10 (Salmon et al., SC'11) in plain torch and in Triton.

The same (seed, counters) give the same bits on every device and in every implementation.
"""

import torch
from torch import Tensor

from sjepa_kernels._checks import bad_type, bad_value, check_same_device
from sjepa_kernels._triton import tl, triton

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10


def philox4x32(
    seed: Tensor, c0: Tensor | int, c1: Tensor | int, c2: Tensor | int, c3: Tensor | int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the four 32-bit words of Philox4x32-10 at the given counters.

    One round: (c0, c1, c2, c3) <- (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)),
    then k0 += W0, k1 += W1; all modulo 2^32.

    Args:
        seed: 0-dim int64; its low and high 32 bits are the key.
        c0: Counter word, int or integer tensor; taken modulo 2^32.
        c1: Counter word; the four broadcast together.
        c2: Counter word.
        c3: Counter word.

    Returns:
        Four int64 tensors of the broadcast shape, with values in [0, 2^32).

    Raises:
        TypeError: The seed is not int64, or a counter tensor is not of integers.
        ValueError: The seed is not 0-dim, or a counter does not broadcast with those before it or
            is on another device.
    """
    if seed.dtype != torch.int64:
        raise bad_type("seed", seed.dtype, "pass an int64 tensor")
    if seed.ndim != 0:
        raise bad_value("seed", tuple(seed.shape), "pass a 0-dim tensor")
    _check_counters(seed.device, c0, c1, c2, c3)
    k0s = ((seed & _MASK) + _round_offsets(_W0, seed.device)) & _MASK
    k1s = (((seed >> 32) & _MASK) + _round_offsets(_W1, seed.device)) & _MASK
    x0, x1, x2, x3 = (_counter(c) for c in (c0, c1, c2, c3))
    for k0, k1 in zip(k0s.unbind(), k1s.unbind(), strict=True):
        # x M = x (M - 2^32) + 2^32 x. The first product fits int64 because M > 2^31; x M itself
        # would overflow, which C++ leaves undefined and a compiled graph then gets wrong.
        p0, p1 = x0 * (_M0 - (1 << 32)), x2 * (_M1 - (1 << 32))
        x0, x1, x2, x3 = (
            ((p1 >> 32) + x2) ^ x1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) + x0) ^ x3 ^ k1,
            p0 & _MASK,
        )
    assert isinstance(x0, Tensor) and isinstance(x1, Tensor)
    assert isinstance(x2, Tensor) and isinstance(x3, Tensor)
    return x0, x1, x2, x3


def _round_offsets(step: int, device: torch.device) -> Tensor:
    return torch.arange(0, _ROUNDS * step, step, device=device, dtype=torch.int64)


def _counter(counter: Tensor | int) -> Tensor | int:
    if isinstance(counter, Tensor):
        counter = counter.to(torch.int64)
    return counter & _MASK


def _check_counters(device: torch.device, *counters: Tensor | int) -> None:
    shape: tuple[int, ...] = ()
    for i, counter in enumerate(counters):
        if not isinstance(counter, Tensor):
            continue
        _check_integers(f"c{i}", counter)
        check_same_device(device, **{f"c{i}": counter})
        try:
            shape = torch.broadcast_shapes(shape, counter.shape)
        except RuntimeError as error:
            fix = f"expected a shape that broadcasts with {tuple(shape)}"
            raise bad_value(f"c{i}", tuple(counter.shape), fix) from error


def _check_integers(name: str, tensor: Tensor) -> None:
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise bad_type(name, tensor.dtype, "pass an integer tensor")


def uniform(bits: Tensor) -> Tensor:
    """Return float32 in [0, 1) from the top 24 of 32 random bits: (bits >> 8) * 2^-24.

    Args:
        bits: Integers, taken modulo 2^32, as `philox4x32` returns them.

    Returns:
        float32 of the same shape.

    Raises:
        TypeError: The bits are not integers.
    """
    _check_integers("bits", bits)
    return ((bits.to(torch.int64) & _MASK) >> 8).to(torch.float32) * 2.0**-24


@triton.jit
def philox4x32_device(k0, k1, c0, c1, c2, c3):
    """The same function inside a Triton kernel; all six arguments are uint32."""
    for _ in tl.static_range(10):
        hi0 = tl.umulhi(c0, 0xD2511F53)
        hi1 = tl.umulhi(c2, 0xCD9E8D57)
        lo0 = c0 * 0xD2511F53
        lo1 = c2 * 0xCD9E8D57
        c0 = hi1 ^ c1 ^ k0
        c1 = lo1
        c2 = hi0 ^ c3 ^ k1
        c3 = lo0
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1, c2, c3
