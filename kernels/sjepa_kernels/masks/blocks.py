# SPDX-License-Identifier: Apache-2.0
"""Block masks of images and video: targets are blocks, the context is what they leave (I-JEPA).

Shapes: C clips, B sequences (clip x body, bodies innermost), T x H x W grid, N = T*H*W tokens
(index (t H + h) W + w), P targets per sequence, U tokens per target, K kept, Q = N - K others.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sjepa_kernels import purposes
from sjepa_kernels._checks import bad_value
from sjepa_kernels._dispatch import choose
from sjepa_kernels._library import Op
from sjepa_kernels._triton import next_power_of_two, tl, triton
from sjepa_kernels.masks import shared
from sjepa_kernels.masks.shared import Draws, draw_words, empty_mask
from sjepa_kernels.philox import philox4x32, uniform

# Frames, rows and columns, of a grid or of a block.
Size = tuple[int, int, int]
Tensors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class BlockMask(NamedTuple):
    """Context, targets and the rest of each sequence; int32, ids in rising order.

    `ids_keep_BK`, `ids_mask_BQ` and `ids_restore_BN` are those of a `TokenMask`.
    `ids_target_PBU` has target p of sequence b in row p B + b, as `pack_tokens(repeat=P)` takes it;
    targets may overlap. `free_B` counts the context block's tokens that no target covers: where it
    is below K, tokens outside of the block made up for them, then covered ones.
    """

    ids_keep_BK: Tensor
    ids_mask_BQ: Tensor
    ids_restore_BN: Tensor
    ids_target_PBU: Tensor
    free_B: Tensor


class Blocks(NamedTuple):
    """Sizes, in the argument order of the registered op."""

    grid: Size
    context: Size
    target: Size
    targets: int


def _ranks(blocks: Blocks, words_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Return corners (B, 1 + P, 3), the context's first, and each token's rank (B, N).

    The rank is 0 in the free part of the context, 2 in a target and 1 elsewhere.
    """
    grid, context, target, targets = blocks
    device = words_BN.device
    sizes = torch.tensor([context, *[target] * targets], device=device)
    room = torch.tensor(grid, device=device) - sizes + 1
    corners = (words_BN[:, : 3 * (1 + targets)].unflatten(1, (-1, 3)) * room) >> 32
    token = torch.cartesian_prod(*(torch.arange(n, device=device) for n in grid))
    first, end = corners[:, :, None], (corners + sizes)[:, :, None]
    inside = ((token >= first) & (token < end)).all(dim=-1)
    rank = torch.where(inside[:, 0], 0, 1)
    return corners, torch.where(inside[:, 1:].any(dim=1), 2, rank)


def block_mask_ref(keep: int, blocks: Blocks, draws: Draws) -> BlockMask:
    """Plain PyTorch form of `block_mask`."""
    grid, _, target, targets = blocks
    places = 3 * (1 + targets)
    words = draw_words(draws, places + math.prod(grid))
    corners, rank = _ranks(blocks, words)
    mask = shared.split_smallest((rank << 24) | (words[:, places:] >> 8), keep)
    strides = torch.tensor([grid[1] * grid[2], grid[2], 1], device=words.device)
    offsets = torch.cartesian_prod(*(torch.arange(n, device=words.device) for n in target))
    corner = (corners[:, 1:] * strides).sum(dim=-1).T.flatten()
    ids_target = (corner[:, None] + (offsets * strides).sum(dim=-1)).to(torch.int32)
    return BlockMask(*mask, ids_target, (rank == 0).sum(dim=1, dtype=torch.int32))


@triton.jit
def _corner(seed, step, clip_ids, b, place, count, bodies, room, PURPOSE: tl.constexpr):
    """Where a block begins on one axis: floor(u * room) of the draw at `place`."""
    word = shared.draw_words_device(seed, step, clip_ids, b, place, count, bodies, PURPOSE)
    # A number of 1 is no tensor in a compiled kernel.
    return tl.umulhi(word, (word - word) + room).to(tl.int32)


@triton.jit
def _block_mask_kernel(
    seed, step, clip_ids, ids_keep, ids_mask, ids_restore, ids_target, free,
    N, K, B, H, W, room_t, room_h, room_w, context_t, context_h, context_w,
    target_room_t, target_room_h, target_room_w, target_t, target_h, target_w, bodies,
    TARGETS: tl.constexpr, PURPOSE: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """One sequence: the corners of its blocks, then ranks and draws of all tokens in registers."""
    b = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, BN)
    inside = n < N
    t, h, w = n // (H * W), (n // W) % H, n % W
    places: tl.constexpr = 3 * (1 + TARGETS)
    count = places + N
    t0 = _corner(seed, step, clip_ids, b, 0, count, bodies, room_t, PURPOSE)
    h0 = _corner(seed, step, clip_ids, b, 1, count, bodies, room_h, PURPOSE)
    w0 = _corner(seed, step, clip_ids, b, 2, count, bodies, room_w, PURPOSE)
    in_context = (t >= t0) & (t < t0 + context_t) & (h >= h0) & (h < h0 + context_h)
    in_context = in_context & (w >= w0) & (w < w0 + context_w)
    hidden = n < 0
    size = target_t * target_h * target_w
    for p in tl.static_range(TARGETS):
        t0 = _corner(seed, step, clip_ids, b, 3 * p + 3, count, bodies, target_room_t, PURPOSE)
        h0 = _corner(seed, step, clip_ids, b, 3 * p + 4, count, bodies, target_room_h, PURPOSE)
        w0 = _corner(seed, step, clip_ids, b, 3 * p + 5, count, bodies, target_room_w, PURPOSE)
        covered = (t >= t0) & (t < t0 + target_t) & (h >= h0) & (h < h0 + target_h)
        hidden = hidden | (covered & (w >= w0) & (w < w0 + target_w))
        for start in range(0, size, BT):
            u = start + tl.arange(0, BT)
            row = (t0 + u // (target_h * target_w)) * H + h0 + (u // target_w) % target_h
            token = row * W + w0 + u % target_w
            tl.store(ids_target + (p * B + b) * size + u, token, mask=u < size)
    rank = tl.where(hidden, 2, tl.where(in_context, 0, 1)).to(tl.uint32)
    tl.store(free + b, tl.sum((inside & (rank == 0)).to(tl.int32), axis=0))
    word = shared.draw_words_device(seed, step, clip_ids, b, places + n, count, bodies, PURPOSE)
    keep, seen = shared.keep_smallest((rank << 24) | (word >> 8), inside, K, 26)
    kept_place = seen - 1
    mask_place = n - seen
    tl.store(ids_keep + b * K + kept_place, n, mask=keep)
    tl.store(ids_mask + b * (N - K) + mask_place, n, mask=inside & (keep == 0))
    tl.store(ids_restore + b * N + n, tl.where(keep, kept_place, K + mask_place), mask=inside)


def _block_mask(
    keep: int, grid: list[int], context: list[int], target: list[int], targets: int,
    seed: Tensor, step: Tensor, clip_ids: Tensor, bodies: int, purpose: int,
) -> Tensors:  # fmt: skip
    out = _empty(keep, grid, context, target, targets, seed, step, clip_ids, bodies, purpose)
    batch = clip_ids.shape[0] * bodies
    if batch:
        tokens = math.prod(grid)
        block, warps = shared.block_and_warps(tokens)
        rooms, target_rooms = (
            [whole - part + 1 for whole, part in zip(grid, of, strict=True)]
            for of in (context, target)
        )
        _block_mask_kernel[(batch,)](
            seed, step, clip_ids.contiguous(), *out, tokens, keep, batch, *grid[1:],
            *rooms, *context, *target_rooms, *target, bodies,
            TARGETS=targets, PURPOSE=purpose, BN=block,
            BT=min(max(next_power_of_two(math.prod(target)), 32), 1024), num_warps=warps,
        )  # fmt: skip
    return out


def _empty(*inputs: Any) -> Tensors:
    keep, grid, _, target, targets, seed, _, clip_ids, bodies, _ = inputs
    batch = clip_ids.shape[0] * bodies
    mask = empty_mask(seed, batch, math.prod(grid), keep)
    ids_target = seed.new_empty((targets * batch, math.prod(target)), dtype=torch.int32)
    return *mask, ids_target, seed.new_empty(batch, dtype=torch.int32)


_op = Op("block_mask", _block_mask, _empty)


def block_mask(
    batch: int,
    grid: tuple[int, ...],
    keep: int | None,
    seed: Tensor,
    *,
    target: tuple[int, ...],
    targets: int = 4,
    context: tuple[int, ...] | None = None,
    step: Tensor | int = 0,
    clip_ids_C: Tensor | None = None,
    bodies: int = 1,
    purpose: int = 0,
    impl: str = "auto",
) -> BlockMask:
    """Draw the multi-block masks of I-JEPA (Assran et al. 2023) and V-JEPA (Bardes et al. 2024).

    P target blocks and a context block of fixed sizes lie anywhere in the grid, each place equally
    likely. The context is the K tokens of its block that no target covers. I-JEPA predicts each
    target (`ids_target_PBU`) from it; V-JEPA, with blocks as long as the clip and no context block,
    predicts all that is hidden (`ids_mask_BQ`).

    With a fixed K all shapes are known beforehand: nothing waits for the device, and a captured
    graph draws new masks with each step. Which K of the free tokens stay is drawn too; the
    published collators cut every sequence to the batch's shortest and always drop the last ones.

    The draws depend on (seed, step, clip id, body, place, purpose) alone and are compared as
    integers: the same masks on every device and in every implementation.

    Args:
        batch: B, how many sequences.
        grid: (H, W), or (T, H, W) for video; at most 4096 tokens.
        keep: K. None takes the batch's smallest number of free tokens, at least one, which is read
            from the device.
        seed: 0-dim int64; its device is where the mask is made.
        target: Size of each target, with as many numbers as the grid; see `block_size`.
        targets: P, at most 32.
        context: Size of the context block; by default the grid.
        step: An int, or a 0-dim integer tensor that counts calls; equal steps draw equal masks.
        clip_ids_C: int32 or int64 id of each clip; 0..C-1 by default.
        bodies: Sequences per clip; sequence c * bodies + m is body m of clip c.
        purpose: Keeps these draws apart from others of the same seed, step and clip.
        impl: "auto", "triton", "cpu" or "torch".

    Returns:
        The mask.

    Raises:
        TypeError: A dtype is not usable.
        ValueError: A size, count, device or `impl` is not usable.
    """
    if batch < 0:
        raise bad_value("batch", batch, "pass a number of sequences")
    whole = _checked_size("grid", grid)
    tokens = math.prod(whole)
    if not 1 <= targets <= 32:
        raise bad_value("targets", targets, "draw 1 to 32 blocks")
    sizes = {"context": grid if context is None else context, "target": target}
    for name, size in sizes.items():
        if len(size) != len(grid) or any(not 1 <= n <= g for n, g in zip(size, grid, strict=True)):
            raise bad_value(name, size, f"expected a block of at least 1 that fits in {grid}")
    of_context, of_target = (_checked_size(name, size) for name, size in sizes.items())
    blocks = Blocks(whole, of_context, of_target, targets)
    shared.check_counts(tokens, keep or 0, tokens, "tokens", "grid")
    draws = shared.checked_draws(seed.device, seed, step, clip_ids_C, batch, bodies, purpose)
    if keep is None:
        words = draw_words(draws, 3 * (1 + targets) + tokens)
        free_B = (_ranks(blocks, words)[1] == 0).sum(dim=1)
        keep = max(int(free_B.min()), 1) if batch else 1
    if choose(impl, seed.device) == "torch":
        return block_mask_ref(keep, blocks, draws)
    return BlockMask(*_op(keep, *blocks, *draws))


def block_size(
    grid: tuple[int, ...],
    scale: tuple[float, float],
    aspect: tuple[float, float],
    seed: int,
    *,
    step: int = 0,
    frames: tuple[float, float] = (1.0, 1.0),
) -> tuple[int, ...]:
    """Draw the size of the blocks of a step, on the host: all blocks of a batch have it.

    Area and aspect ratio are uniform; h = round(sqrt(area aspect)), w = round(sqrt(area / aspect)).
    I-JEPA: targets (0.15, 0.2) with aspect (0.75, 1.5), context (0.85, 1) with aspect (1, 1).
    V-JEPA: eight targets of scale 0.15 and two of 0.7, aspect (0.75, 1.5).

    Args:
        grid: (H, W) or (T, H, W).
        scale: Smallest and largest share of an image's tokens.
        aspect: Smallest and largest height over width.
        seed: Of the draw.
        step: Equal steps draw equal sizes.
        frames: Smallest and largest share of the frames, for a grid with frames.

    Returns:
        (h, w) or (t, h, w), at least 1 and at most the grid.

    Raises:
        ValueError: The grid is not one of two or three sizes, or a range is not usable.
    """
    whole = _checked_size("grid", grid)
    for name, (low, high), top in (
        ("scale", scale, 1.0),
        ("aspect", aspect, math.inf),
        ("frames", frames, 1.0),
    ):
        if not 0 < low <= high <= top or math.isinf(high):
            raise bad_value(name, (low, high), f"expected 0 < low <= high <= {top}")
    words = philox4x32(torch.tensor(seed), 0, 0, step, purposes.BLOCK_SIZE)
    of_frames, of_scale, of_aspect = (float(uniform(word)) for word in words[:3])
    time, rows, columns = whole
    area = int(rows * columns * (scale[0] + of_scale * (scale[1] - scale[0])))
    ratio = aspect[0] + of_aspect * (aspect[1] - aspect[0])
    size = (
        int(time * (frames[0] + of_frames * (frames[1] - frames[0]))),
        round(math.sqrt(area * ratio)),
        round(math.sqrt(area / ratio)),
    )
    fitting = tuple(min(max(n, 1), most) for n, most in zip(size, whole, strict=True))
    return fitting[-len(grid) :]


def _checked_size(name: str, size: tuple[int, ...]) -> Size:
    """Return (T, H, W), with one frame for an image."""
    if len(size) not in (2, 3) or min(size) < 1:
        raise bad_value(name, size, "expected (H, W) or (T, H, W), each at least 1")
    time, rows, columns = (1, *size)[-3:]
    return time, rows, columns
