# SPDX-License-Identifier: Apache-2.0
"""What the mask ops share: their result, the draws, the selection of the smallest keys, checks.

Shapes: C clips, B sequences (clip x body, bodies innermost), N = S*V tokens (index s V + v),
P numbers per token, K kept, Q = N - K masked.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sjepa_kernels._checks import (
    bad_value,
    check_float,
    check_int64,
    check_integers,
    check_purpose,
    check_same_device,
    check_shape,
)
from sjepa_kernels._triton import next_power_of_two, tl, triton
from sjepa_kernels.philox import philox4x32, philox4x32_device

MAX_TOKENS = 4096

# The three tensors of a `TokenMask`.
IdTensors = tuple[Tensor, Tensor, Tensor]


class TokenMask(NamedTuple):
    """Which tokens stay visible; int32, ids in rising order.

    `ids_restore_BN` is the inverse of cat([ids_keep, ids_mask], dim=1): token n stands there at
    place `ids_restore[b, n]`, which is below K exactly for the visible tokens. So
    `cat([visible, masked], 1)` gathered at `ids_restore` is the full grid again.
    """

    ids_keep_BK: Tensor
    ids_mask_BQ: Tensor
    ids_restore_BN: Tensor


class Draws(NamedTuple):
    """Seed and counters of the draws of C clips, in the argument order of the registered ops."""

    seed: Tensor
    step: Tensor
    clip_ids_C: Tensor
    bodies: int
    purpose: int


def draw_words(draws: Draws, count: int) -> Tensor:
    """Return the random words of each sequence, (C * bodies, count) int64 below 2^32.

    The draw i = body * count + n of a clip is word i % 4 of Philox at the counters
    (i // 4, clip id, step, purpose).
    """
    seed, step, clip_ids_C, bodies, purpose = draws
    total = bodies * count
    counters = torch.arange((total + 3) // 4, device=seed.device)
    words = philox4x32(seed, counters[None], clip_ids_C[:, None], step, purpose)
    drawn = torch.stack(words, dim=-1).flatten(1)[:, :total]
    return drawn.reshape(clip_ids_C.shape[0] * bodies, count)


def split_smallest(keys_BN: Tensor, keep: int) -> TokenMask:
    """Split tokens by their keys: the `keep` smallest stay, smaller ids first among equals."""
    batch, tokens = keys_BN.shape
    first = keys_BN.argsort(dim=1, stable=True)[:, :keep]
    visible = torch.zeros_like(keys_BN, dtype=torch.int32).scatter(1, first, 1)
    seen = visible.cumsum(dim=1, dtype=torch.int32)
    token = torch.arange(tokens, device=keys_BN.device, dtype=torch.int32).expand(batch, -1)
    restore = torch.where(visible > 0, seen - 1, keep + token - seen)
    packed = torch.empty_like(restore).scatter(1, restore.long(), token)
    return TokenMask(packed[:, :keep].contiguous(), packed[:, keep:].contiguous(), restore)


@triton.jit
def draw_words_device(seed, step, clip_ids, b, n, count, bodies, PURPOSE: tl.constexpr):
    """The words of `draw_words` inside a kernel: those n of sequence b, uint32."""
    i = ((b % bodies) * count + n).to(tl.uint32)
    bits = tl.load(seed)
    clip = tl.load(clip_ids + b // bodies).to(tl.uint32)
    when = tl.load(step).to(tl.uint32)
    zero = i - i
    w0, w1, w2, w3 = philox4x32_device(
        bits.to(tl.uint32), (bits >> 32).to(tl.uint32), i >> 2, zero + clip, zero + when,
        zero + PURPOSE,
    )  # fmt: skip
    # A block computes each word four times over; that is cheaper than moving words between lanes.
    even = tl.where((i & 2) == 0, w0, w2)
    odd = tl.where((i & 2) == 0, w1, w3)
    return tl.where((i & 1) == 0, even, odd)


@triton.jit
def uniform_device(word):
    """Float32 in [0, 1) as `philox.uniform` makes it."""
    return (word >> 8).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def ordered_bits(key):
    """Float32 as uint32 in the same order; NaN comes last, as in torch's sort."""
    bits = key.to(tl.uint32, bitcast=True)
    flipped = tl.where((bits >> 31) == 0, bits ^ 0x80000000, bits ^ 0xFFFFFFFF)
    return tl.where(key == key, flipped, 0xFFFFFFFF)


@triton.jit
def max_device(x):
    """Maximum of float32 numbers that are not below zero; NaN if one is NaN, as in torch."""
    bits = tl.max(x.to(tl.int32, bitcast=True), axis=0)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def keep_smallest(order, inside, K, BITS: tl.constexpr):
    """Return flags of the K smallest of `order`, all below 2^BITS, and their running count.

    The K-th smallest value is found bit by bit, by counting: no element moves, unlike in a sort,
    and nothing depends on how the block is laid out over threads.
    """
    low = tl.full((), 0, tl.uint32)
    bit = tl.full((), 1 << (BITS - 1), tl.uint32)
    for _ in range(BITS):
        below = tl.sum((inside & (order < low + bit)).to(tl.int32), axis=0)
        low = tl.where(below < K, low + bit, low)
        bit = bit >> 1
    less = inside & (order < low)
    equal = inside & (order == low)
    room = K - tl.sum(less.to(tl.int32), axis=0)
    keep = less | (equal & (tl.cumsum(equal.to(tl.int32), axis=0) <= room))
    return keep, tl.cumsum(keep.to(tl.int32), axis=0)


def block_and_warps(size: int) -> tuple[int, int]:
    """Return (block, warps) for a kernel that holds `size` keys in registers."""
    block = max(next_power_of_two(size), 32)
    return block, min(max(block // 256, 1), 16)


def vector_width(size: int) -> int:
    """Return how many numbers of a token one thread loads at once: 4, 2 or 1."""
    return math.gcd(size, 4)


def empty_mask(like: Tensor, batch: int, tokens: int, keep: int) -> IdTensors:
    """Return the three tensors of a `TokenMask`, not filled."""
    keep_BK, mask_BQ, restore_BN = (
        like.new_empty((batch, columns), dtype=torch.int32)
        for columns in (keep, tokens - keep, tokens)
    )
    return keep_BK, mask_BQ, restore_BN


def checked_draws(
    device: torch.device,
    seed: Tensor,
    step: Tensor | int,
    clip_ids_C: Tensor | None,
    batch: int,
    bodies: int,
    purpose: int,
) -> Draws:
    """Check seed and counters of `batch` sequences; clip ids are 0..C-1 where none are given."""
    check_int64("seed", seed)
    check_shape("seed", seed, (), "a 0-dim tensor")
    if bodies < 1 or batch % bodies:
        raise bad_value("bodies", bodies, f"must divide the batch of {batch} sequences")
    check_purpose(purpose)
    check_same_device(device, seed=seed)
    if isinstance(step, Tensor):
        check_shape("step", step, (), "a 0-dim tensor")
        check_integers("step", step)
        check_same_device(device, step=step)
    else:
        step = torch.full((), step, device=device, dtype=torch.int64)
    if clip_ids_C is None:
        clip_ids_C = torch.arange(batch // bodies, device=device)
    else:
        check_shape("clip_ids", clip_ids_C, (batch // bodies,), "(C,)")
        check_integers("clip_ids", clip_ids_C)
        check_same_device(device, clip_ids=clip_ids_C)
    return Draws(seed, step, clip_ids_C, bodies, purpose)


def check_counts(tokens: int, keep: int, of: int, what: str, argument: str = "tubelets") -> None:
    """Check the number of tokens, and that `keep` is a count of the `of` things it picks from."""
    if not 1 <= tokens <= MAX_TOKENS:
        raise bad_value(argument, f"{tokens} tokens", f"pass 1 to {MAX_TOKENS} per sequence")
    if not 0 <= keep <= of:
        raise bad_value("keep", keep, f"keep 0 to {of} {what}")


def check_tubelets(tubelets_BNP: Tensor, joints: int) -> None:
    """Check that tokens of numbers make a grid of segments x joints."""
    if tubelets_BNP.ndim != 3 or tubelets_BNP.shape[2] == 0:
        raise bad_value("tubelets", tuple(tubelets_BNP.shape), "expected (B, N, P) with P > 0")
    check_float("tubelets", tubelets_BNP)
    tokens = tubelets_BNP.shape[1]
    if joints < 1 or tokens % joints:
        raise bad_value("joints", joints, f"must divide the {tokens} tokens")
