# SPDX-License-Identifier: Apache-2.0
"""Frames by index instead of by interpolation, as Skeleton2vec samples them (method 1.4).

Shapes: B clips, T frames wanted, L frames that a clip has.
"""

from __future__ import annotations

import torch
from torch import Tensor


def random_frames(uniforms_BU: Tensor, valid_B: Tensor, frames: int) -> Tensor:
    """Draw T frames of each clip in order, without waiting for the device.

    L < T: from a random start on, wrapping around. T <= L < 2 T: all but L - T frames that are
    skipped at random places. L >= 2 T: one frame of each of T equal bins.
    Takes T + 1 draws in [0, 1) per clip and L, int64; returns numbers in [0, L), int64 (B, T).
    """
    time = torch.arange(frames, device=valid_B.device)
    length = valid_B[:, None]
    start = _scaled(uniforms_BU[:, :1], length)
    wrapped = (start + time) % length
    # Of T + 1 places, those with the L - T smallest draws skip a frame.
    rank = uniforms_BU.argsort(dim=1, stable=True).argsort(dim=1)
    skipping = time + (rank < length - frames).long().cumsum(dim=1)[:, :-1]
    first, after = time * length // frames, (time + 1) * length // frames
    binned = first + _scaled(uniforms_BU[:, :-1], after - first)
    return torch.where(length < frames, wrapped, torch.where(length < 2 * frames, skipping, binned))


def even_frames(valid_B: Tensor, frames: int) -> Tensor:
    """The middles of T equal bins, or all frames again and again where there are fewer.

    For evaluation, where the authors draw at random (our choice). Returns frame numbers in [0, L),
    int64 (B, T), for the lengths L in `valid_B`, int64.
    """
    time = torch.arange(frames, device=valid_B.device)
    length = valid_B[:, None]
    middle = (2 * time + 1) * length // (2 * frames)
    return torch.where(length < frames, time % length, middle)


def _scaled(uniforms: Tensor, sizes: Tensor) -> Tensor:
    """Whole numbers below `sizes`; a product that rounds up to the size stays below it."""
    return torch.minimum((uniforms * sizes).long(), sizes - 1).clamp_min(0)
