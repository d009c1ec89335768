# SPDX-License-Identifier: Apache-2.0
"""Tubelets and frames, and the streams: what a token holds, and in which order.

Shapes: B sequences, T frames, V joints, C coordinates, l frames per segment, S = T/l segments,
N = S*V tokens (index segment * V + joint), P = l*C numbers per token (frame, coordinate).
"""

from typing import Literal

import torch
from torch import Tensor

Stream = Literal["joint", "bone", "motion", "bone_motion"]
STREAMS: tuple[Stream, ...] = ("joint", "bone", "motion", "bone_motion")
# Of a classifier's tokens; pre-training has one stream.
TokenStream = Stream | Literal["all"]
TOKEN_STREAMS: tuple[TokenStream, ...] = (*STREAMS, "all")


def stream_coords(stream: TokenStream) -> int:
    """Return how many numbers a joint has in a frame of a stream."""
    return 9 if stream == "all" else 3


def to_tubelets(x_BTVC: Tensor, segment_length: int) -> Tensor:
    """Cut sequences into tubelets: (B, T, V, C) -> (B, N, P); l divides T (method 2)."""
    batch, frames, joints, coords = x_BTVC.shape
    segments = frames // segment_length
    x = x_BTVC.reshape(batch, segments, segment_length, joints, coords).transpose(2, 3)
    return x.reshape(batch, segments * joints, segment_length * coords)


def to_frames(tubelets_BNP: Tensor, joints: int, coords: int = 3) -> Tensor:
    """Join tubelets to the sequences behind them: (B, N, P) -> (B, T, V, C)."""
    batch, tokens, size = tubelets_BNP.shape
    segments, length = tokens // joints, size // coords
    x = tubelets_BNP.reshape(batch, segments, joints, length, coords).transpose(2, 3)
    return x.reshape(batch, segments * length, joints, coords)


def split_streams(tubelets: Tensor) -> tuple[Tensor, Tensor]:
    """Part tokens of stream all, (..., l*9), into joints (..., l*3) and the others (..., l*6)."""
    frames = tubelets.unflatten(-1, (tubelets.shape[-1] // 9, 9))
    return frames[..., :3].flatten(-2), frames[..., 3:].flatten(-2)


def forward_difference(x: Tensor) -> Tensor:
    """x[t+1] - x[t] along the frames of (..., T, V, C), 0 for the last frame (method 1.5)."""
    change = torch.zeros_like(x)
    change[..., :-1, :, :] = x[..., 1:, :, :] - x[..., :-1, :, :]
    return change


def to_stream(x: Tensor, parents_V: Tensor, stream: TokenStream) -> Tensor:
    """Turn joints (..., T, V, C) into bones (child - parent), their motion, or both in turn.

    Stream all is joints, bones and the motion of joints side by side, (..., T, V, 3C).
    Source: method 1.5; absent bodies stay zero.
    """
    if stream == "all":
        parts: tuple[Stream, ...] = ("joint", "bone", "motion")
        return torch.cat([to_stream(x, parents_V, part) for part in parts], dim=-1)
    if stream in ("bone", "bone_motion"):
        x = x - x[..., parents_V, :]
    return forward_difference(x) if stream in ("motion", "bone_motion") else x
