# SPDX-License-Identifier: Apache-2.0
"""Masks of whole tubes: the same joints stay visible over several segments (Skeleton2vec).

Shapes: C clips, B sequences (clip x body, bodies innermost), S segments, V joints, N = S*V tokens
(index s V + v), P numbers per token (frame, coordinate), U tubes of L segments, K kept, Q masked.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sjepa_kernels._checks import bad_value, check_number
from sjepa_kernels._dispatch import choose
from sjepa_kernels._library import Op
from sjepa_kernels._triton import device_scalar, tl, triton
from sjepa_kernels.masks import shared
from sjepa_kernels.masks.shared import Draws, IdTensors, TokenMask, draw_words, empty_mask
from sjepa_kernels.philox import uniform
from sjepa_kernels.tubelets import forward_difference, to_frames


class TubeGrid(NamedTuple):
    """How tokens make tubes, in the argument order of the registered op."""

    joints: int
    tube_length: int
    scale: Tensor
    coords: int


def tube_keys(tubelets_BNP: Tensor, words_BUV: Tensor, grid: TubeGrid) -> Tensor:
    """Sort keys of `tube_mask`, float32 (B, U, V)."""
    joints, tube_length, scale, coords = grid
    change = forward_difference(to_frames(tubelets_BNP.float(), joints, coords)).abs()
    batch, frames = change.shape[:2]
    tubes = tubelets_BNP.shape[1] // joints // tube_length
    by_tube = change.view(batch, tubes, frames // tubes, joints, coords)
    motion = by_tube.mean(dim=(2, 4))
    share = motion / (motion.amax(dim=2, keepdim=True) + 1e-6)
    return uniform(words_BUV) + scale * share


def tube_mask_ref(tubelets_BNP: Tensor, keep: int, grid: TubeGrid, draws: Draws) -> TokenMask:
    """Plain PyTorch form of `tube_mask`."""
    joints, tube_length = grid.joints, grid.tube_length
    batch, segments = tubelets_BNP.shape[0], tubelets_BNP.shape[1] // joints
    tubes, hidden = segments // tube_length, joints - keep
    words = draw_words(draws, tubes * joints).view(batch, tubes, joints)
    keys = tube_keys(tubelets_BNP, words, grid)
    of_tube = shared.split_smallest(keys.flatten(0, 1), keep)
    # From joints of a tube to tokens: every segment repeats the joints of its tube.
    keep_v, mask_v, restore_v = (
        x.view(batch, tubes, x.shape[1]).repeat_interleave(tube_length, dim=1) for x in of_tube
    )
    segment = torch.arange(segments, device=keys.device, dtype=torch.int32)[:, None]
    before = torch.where(
        restore_v < keep, segment * keep, segments * keep + segment * hidden - keep
    )
    return TokenMask(
        (keep_v + segment * joints).flatten(1),
        (mask_v + segment * joints).flatten(1),
        (restore_v + before).flatten(1),
    )


@triton.jit
def _tube_kernel(
    tubelets, scale, seed, step, clip_ids, ids_keep, ids_mask, ids_restore,
    S, V, K, L, bodies, P: tl.constexpr, C: tl.constexpr, PURPOSE: tl.constexpr, BV: tl.constexpr,
    BP: tl.constexpr,
):  # fmt: skip
    """One tube of one sequence."""
    tubes = S // L
    b = (tl.program_id(0) // tubes).to(tl.int64)
    tube = tl.program_id(0) % tubes
    v = tl.arange(0, BV)
    inside = v < V
    word = shared.draw_words_device(
        seed, step, clip_ids, b, tube * V + v, tubes * V, bodies, PURPOSE
    )
    total = tl.zeros((BV,), tl.float32)
    for s in range(tube * L, tube * L + L):
        row = tubelets + (b * S + s) * V * P + v[:, None] * P
        for start in range(0, P, BP):
            k = start + tl.arange(0, BP)[None, :]
            # The frame after the last one of this token is the first one of the next segment's.
            there = inside[:, None] & ((k + C < P) | (s + 1 < S))
            after = tl.where(k + C < P, k + C, V * P + k + C - P)
            now = tl.load(row + k, mask=there, other=0.0).to(tl.float32)
            then = tl.load(row + after, mask=there, other=0.0).to(tl.float32)
            total += tl.sum(tl.abs(then - now), axis=1)
    motion = total / (P * L)
    share = motion / (shared.max_device(motion) + 1e-6)
    key = shared.uniform_device(word) + tl.load(scale).to(tl.float32) * share
    keep, seen = shared.keep_smallest(shared.ordered_bits(key), inside, K, 32)
    hide = inside & (keep == 0)
    for s in range(tube * L, tube * L + L):
        kept_place = s * K + seen - 1
        mask_place = s * (V - K) + v - seen
        place = tl.where(keep, kept_place, S * K + mask_place)
        tl.store(ids_keep + b * S * K + kept_place, s * V + v, mask=keep)
        tl.store(ids_mask + b * S * (V - K) + mask_place, s * V + v, mask=hide)
        tl.store(ids_restore + (b * S + s) * V + v, place, mask=inside)


def _tube_mask(
    tubelets: Tensor, keep: int, joints: int, tube_length: int, scale: Tensor, coords: int,
    seed: Tensor, step: Tensor, clip_ids: Tensor, bodies: int, purpose: int,
) -> IdTensors:  # fmt: skip
    batch, tokens, size = tubelets.shape
    segments = tokens // joints
    out = empty_mask(tubelets, batch, tokens, segments * keep)
    if batch:
        block, warps = shared.block_and_warps(joints)
        _tube_kernel[(batch * (segments // tube_length),)](
            tubelets.contiguous(), scale, seed, step, clip_ids.contiguous(), *out,
            segments, joints, keep, tube_length, bodies,
            P=size, C=coords, PURPOSE=purpose, BV=block, BP=shared.vector_width(size),
            num_warps=warps,
        )  # fmt: skip
    return out


def _tube_mask_fake(*inputs: Any) -> IdTensors:
    tubelets, keep, joints, *_ = inputs
    batch, tokens = tubelets.shape[:2]
    return empty_mask(tubelets, batch, tokens, tokens // joints * keep)


_op = Op("tube_mask", _tube_mask, _tube_mask_fake)


def tube_mask(
    tubelets_BNP: Tensor,
    keep: int,
    seed: Tensor,
    *,
    joints: int,
    tube_length: int,
    scale: float | Tensor = 0.1,
    coords: int = 3,
    step: Tensor | int = 0,
    clip_ids_C: Tensor | None = None,
    bodies: int = 1,
    purpose: int = 0,
    impl: str = "auto",
) -> TokenMask:
    """Draw motion-aware tube masks (method 4.1, from Skeleton2vec).

    I[u, v] = mean of |x[t+1] - x[t]| over the frames of tube u and the coordinates of joint v (0
    for the last frame of the clip); key = U + scale I / (max_v I + 1e-6), one draw for each tube
    and joint. The `keep` joints with the smallest keys of each tube, smaller ids first among
    equals, stay visible in all its segments; a tube with NaN keeps its first joints. Arithmetic
    is float32.

    The draws depend on (seed, step, clip id, body, tube, joint, purpose) alone: the same bits on
    every device and in every implementation, however a batch is split. Keys differ between
    implementations by roundings, so that ids may differ where the two keys around the cut lie
    within 4e-7 of each other.

    Args:
        tubelets_BNP: Tokens in the order s V + v, each of frames x coordinates; N at most 4096.
        keep: Visible joints per tube, 0 to V; K = S * keep tokens.
        seed: 0-dim int64, on the device. Under a captured graph it may change between replays.
        joints: V, tokens per segment.
        tube_length: Segments per tube; divides S.
        scale: Weight of motion, not below zero, a float or a 0-dim tensor (0.1 for NTU-60 and
            PKU, 0.2 for NTU-120); 0 gives tubes of uniform joints.
        coords: Coordinates per frame; divides P.
        step: An int, or a 0-dim integer tensor that counts calls; equal steps draw equal masks.
        clip_ids_C: int32 or int64 id of each clip; 0..C-1 by default.
        bodies: Sequences per clip; sequence c * bodies + m is body m of clip c.
        purpose: Keeps these draws apart from others of the same seed, step and clip.
        impl: "auto", "triton", "cpu" or "torch".

    Returns:
        The mask; its three tensors carry no gradient.

    Raises:
        TypeError: A dtype is not usable.
        ValueError: A shape, count, device, scale or `impl` is not usable.
    """
    shared.check_tubelets(tubelets_BNP, joints)
    batch, tokens, size = tubelets_BNP.shape
    shared.check_counts(tokens, keep, joints, "joints per tube")
    if tube_length < 1 or tokens // joints % tube_length:
        segments = tokens // joints
        raise bad_value("tube_length", tube_length, f"must divide the {segments} segments")
    if coords < 1 or size % coords:
        raise bad_value("coords", coords, f"must divide the {size} numbers of a token")
    fix = "pass a finite number not below zero"
    check_number("scale", scale, lambda x: 0 <= x < math.inf, fix)
    device = tubelets_BNP.device
    draws = shared.checked_draws(device, seed, step, clip_ids_C, batch, bodies, purpose)
    tubelets_BNP = tubelets_BNP.detach()
    grid = TubeGrid(joints, tube_length, device_scalar(scale, tubelets_BNP), coords)
    if choose(impl, device) == "torch":
        return tube_mask_ref(tubelets_BNP, keep, grid, draws)
    return TokenMask(*_op(tubelets_BNP, keep, *grid, *draws))
