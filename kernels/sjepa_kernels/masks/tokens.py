# SPDX-License-Identifier: Apache-2.0
"""Which tokens stay visible: motion-aware Gumbel selection (MAMP, S-JEPA) and uniform selection.

Shapes: C clips, B sequences (clip x body, bodies innermost), S segments, V joints, N = S*V tokens
(index s V + v), P numbers per token, K kept, Q = N - K masked.
"""

from typing import Any

import torch
from torch import Tensor

from sjepa_kernels._checks import bad_value, check_positive
from sjepa_kernels._dispatch import choose
from sjepa_kernels._library import Op
from sjepa_kernels._triton import device_scalar, tl, triton
from sjepa_kernels.masks import shared
from sjepa_kernels.masks.shared import Draws, IdTensors, TokenMask, draw_words, empty_mask
from sjepa_kernels.philox import uniform


def motion_keys(tubelets_BNP: Tensor, words_BN: Tensor, joints: int, tau: float | Tensor) -> Tensor:
    """Sort keys of `motion_aware_mask`, float32 (B, N)."""
    batch, tokens, size = tubelets_BNP.shape
    grid = tubelets_BNP.float().reshape(batch, tokens // joints, joints, size)
    change = (grid[:, 1:] - grid[:, :-1]).abs().mean(dim=-1)
    first = change[:, :1] if tokens > joints else grid.new_zeros(batch, 1, joints)
    intensity_BN = torch.cat([first, change], dim=1).flatten(1)
    scaled = intensity_BN / (intensity_BN.amax(dim=1, keepdim=True) * tau + 1e-10)
    gumbel = -torch.log(-torch.log(uniform(words_BN) + 1e-10) + 1e-10)
    # log softmax(x) is x less a number that all tokens of a row share: it cannot change which keys
    # are the smallest, and leaving it out saves a rounding.
    return scaled + gumbel


def motion_aware_mask_ref(
    tubelets_BNP: Tensor, keep: int, joints: int, tau: float | Tensor, draws: Draws
) -> TokenMask:
    """Plain PyTorch form of `motion_aware_mask`."""
    words = draw_words(draws, tubelets_BNP.shape[1])
    return shared.split_smallest(motion_keys(tubelets_BNP, words, joints, tau), keep)


def random_mask_ref(tokens: int, keep: int, draws: Draws) -> TokenMask:
    """Plain PyTorch form of `random_mask`."""
    return shared.split_smallest(draw_words(draws, tokens) >> 8, keep)


@triton.jit
def _mask_kernel(
    tubelets, tau, seed, step, clip_ids, ids_keep, ids_mask, ids_restore, N, K, V, bodies,
    P: tl.constexpr, PURPOSE: tl.constexpr, MOTION: tl.constexpr,
    BN: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """One sequence from its numbers to its ids, all keys in registers."""
    b = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, BN)
    inside = n < N
    word = shared.draw_words_device(seed, step, clip_ids, b, n, N, bodies, PURPOSE)
    if MOTION:
        # The first segment takes the change of the second one; a single segment has none.
        here = tl.where(n < V, n + V, n)
        there = (inside & (here < N))[:, None]
        total = tl.zeros((BN,), tl.float32)
        for start in range(0, P, BP):
            k = start + tl.arange(0, BP)[None, :]
            place = tubelets + b * N * P + here[:, None] * P + k
            now = tl.load(place, mask=there, other=0.0).to(tl.float32)
            before = tl.load(place - V * P, mask=there, other=0.0).to(tl.float32)
            total += tl.sum(tl.abs(now - before), axis=1)
        intensity = total / P
        scaled = intensity / (shared.max_device(intensity) * tl.load(tau).to(tl.float32) + 1e-10)
        key = scaled - tl.log(-tl.log(shared.uniform_device(word) + 1e-10) + 1e-10)
        keep, seen = shared.keep_smallest(shared.ordered_bits(key), inside, K, 32)
    else:
        keep, seen = shared.keep_smallest(word >> 8, inside, K, 24)
    kept_place = seen - 1
    mask_place = n - seen
    tl.store(ids_keep + b * K + kept_place, n, mask=keep)
    tl.store(ids_mask + b * (N - K) + mask_place, n, mask=inside & (keep == 0))
    tl.store(ids_restore + b * N + n, tl.where(keep, kept_place, K + mask_place), mask=inside)


def _motion_aware_mask(
    tubelets: Tensor, keep: int, joints: int, tau: Tensor,
    seed: Tensor, step: Tensor, clip_ids: Tensor, bodies: int, purpose: int,
) -> IdTensors:  # fmt: skip
    batch, tokens, size = tubelets.shape
    out = empty_mask(tubelets, batch, tokens, keep)
    if batch:
        block, warps = shared.block_and_warps(tokens)
        _mask_kernel[(batch,)](
            tubelets.contiguous(), tau, seed, step, clip_ids.contiguous(), *out,
            tokens, keep, joints, bodies,
            P=size, PURPOSE=purpose, MOTION=True, BN=block, BP=shared.vector_width(size),
            num_warps=warps,
        )  # fmt: skip
    return out


def _motion_aware_mask_fake(*inputs: Any) -> IdTensors:
    tubelets, keep, *_ = inputs
    return empty_mask(tubelets, tubelets.shape[0], tubelets.shape[1], keep)


def _random_mask(
    tokens: int, keep: int, seed: Tensor, step: Tensor, clip_ids: Tensor, bodies: int, purpose: int
) -> IdTensors:
    batch = clip_ids.shape[0] * bodies
    out = empty_mask(seed, batch, tokens, keep)
    if batch:
        block, warps = shared.block_and_warps(tokens)
        # Numbers and tau are not read: the seed stands for them.
        _mask_kernel[(batch,)](
            seed, seed, seed, step, clip_ids.contiguous(), *out, tokens, keep, 1, bodies,
            P=1, PURPOSE=purpose, MOTION=False, BN=block, BP=1, num_warps=warps,
        )  # fmt: skip
    return out


def _random_mask_fake(*inputs: Any) -> IdTensors:
    tokens, keep, *keys = inputs
    draws = Draws(*keys)
    return empty_mask(draws.seed, draws.clip_ids_C.shape[0] * draws.bodies, tokens, keep)


_motion_op = Op("motion_aware_mask", _motion_aware_mask, _motion_aware_mask_fake)
_random_op = Op("random_mask", _random_mask, _random_mask_fake)


def motion_aware_mask(
    tubelets_BNP: Tensor,
    keep: int,
    seed: Tensor,
    *,
    joints: int,
    tau: float | Tensor = 0.8,
    step: Tensor | int = 0,
    clip_ids_C: Tensor | None = None,
    bodies: int = 1,
    purpose: int = 0,
    impl: str = "auto",
) -> TokenMask:
    """Draw masks that hide moving tokens more often than still ones (method 3.4, from MAMP).

    m[s, v] = mean_k |P[s, v, k] - P[s-1, v, k]|, m[0] = m[1]; x = m / (tau max m + 1e-10);
    key = log softmax(x) - log(-log(U + 1e-10) + 1e-10); the K smallest keys stay visible, smaller
    ids first among equals. Arithmetic is float32. A sequence without motion (one segment, or an
    empty body) is masked uniformly; one with NaN keeps its first K tokens.

    The draws depend on (seed, step, clip id, body, token, purpose) alone: the same bits on every
    device and in every implementation, however a batch is split. Keys differ between
    implementations by roundings of a logarithm, so that ids may differ where the two keys around
    the cut lie within 4e-6 of each other (between float32 and float64, in about one sequence of
    10,000 with 750 tokens).

    Args:
        tubelets_BNP: Tokens in the order s V + v; N at most 4096.
        keep: K, how many tokens stay visible; 0 to N.
        seed: 0-dim int64, on the device. Under a captured graph it may change between replays.
        joints: V, tokens per segment.
        tau: Temperature above zero, a float or a 0-dim tensor (0.8 for NTU-60, 0.75 for NTU-120).
        step: An int, or a 0-dim integer tensor that counts calls; equal steps draw equal masks.
        clip_ids_C: int32 or int64 id of each clip; 0..C-1 by default.
        bodies: Sequences per clip; sequence c * bodies + m is body m of clip c.
        purpose: Keeps these draws apart from others of the same seed, step and clip.
        impl: "auto", "triton", "cpu" or "torch".

    Returns:
        The mask; its three tensors carry no gradient.

    Raises:
        TypeError: A dtype is not usable.
        ValueError: A shape, count, device, temperature or `impl` is not usable.
    """
    shared.check_tubelets(tubelets_BNP, joints)
    batch, tokens = tubelets_BNP.shape[:2]
    shared.check_counts(tokens, keep, tokens, "tokens")
    check_positive("tau", tau)
    device = tubelets_BNP.device
    draws = shared.checked_draws(device, seed, step, clip_ids_C, batch, bodies, purpose)
    tubelets_BNP = tubelets_BNP.detach()
    args = (tubelets_BNP, keep, joints, device_scalar(tau, tubelets_BNP))
    if choose(impl, device) == "torch":
        return motion_aware_mask_ref(*args, draws)
    return TokenMask(*_motion_op(*args, *draws))


def random_mask(
    batch: int,
    tokens: int,
    keep: int,
    seed: Tensor,
    *,
    step: Tensor | int = 0,
    clip_ids_C: Tensor | None = None,
    bodies: int = 1,
    purpose: int = 0,
    impl: str = "auto",
) -> TokenMask:
    """Draw masks that hide every token with the same probability.

    The key is the uniform draw itself (the same bits as in `motion_aware_mask`), compared as an
    integer: all implementations agree on every id.

    Args:
        batch: B, how many sequences.
        tokens: N, at most 4096.
        keep: K, how many tokens stay visible; 0 to N.
        seed: 0-dim int64; its device is where the mask is made.
        step: An int, or a 0-dim integer tensor that counts calls; equal steps draw equal masks.
        clip_ids_C: int32 or int64 id of each clip; 0..C-1 by default.
        bodies: Sequences per clip; sequence c * bodies + m is body m of clip c.
        purpose: Keeps these draws apart from others of the same seed, step and clip.
        impl: "auto", "triton", "cpu" or "torch".

    Returns:
        The mask.

    Raises:
        TypeError: A dtype is not usable.
        ValueError: A shape, count, device or `impl` is not usable.
    """
    if batch < 0:
        raise bad_value("batch", batch, "pass a number of sequences")
    shared.check_counts(tokens, keep, tokens, "tokens", "tokens")
    draws = shared.checked_draws(seed.device, seed, step, clip_ids_C, batch, bodies, purpose)
    if choose(impl, seed.device) == "torch":
        return random_mask_ref(tokens, keep, draws)
    return TokenMask(*_random_op(tokens, keep, *draws))
