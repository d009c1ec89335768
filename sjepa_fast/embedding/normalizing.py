# SPDX-License-Identifier: Apache-2.0
"""The normalisations of `data/normalize.py` for batches, in operations that a graph can hold.

`normalize_clip` takes one clip at a time and branches on its numbers; here every branch is a
choice between tensors. A test compares the two.
Shapes: N clips, M bodies, T frames, V joints, 3 coordinates (metres, y up).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sjepa_fast.config.schema import DataConfig
from sjepa_fast.data.normalize import joint_above_root
from sjepa_fast.skeletons import SkeletonLayout


def normalize_batch(clips_NMTVC: Tensor, layout: SkeletonLayout, data: DataConfig) -> Tensor:
    """Normalise clips as `normalize_clip` does each of them; float32, same shape.

    The first body that is present, that is not all zero, sets the frame. Bodies that are all zero
    stay so.
    """
    present_NM = (clips_NMTVC != 0).flatten(2).any(dim=2)
    index = present_NM.int().argmax(dim=1)

    def first(x_NMTVC: Tensor) -> Tensor:
        """The first body that is present, (N, T, V, C)."""
        wanted = index[:, None, None, None, None].expand(-1, 1, *x_NMTVC.shape[2:])
        return x_NMTVC.gather(1, wanted).squeeze(1)

    x = clips_NMTVC
    if data.center:
        x = x - first(x)[:, 0, layout.center][:, None, None, None]
    if data.align_spine:
        x = torch.matmul(x, _upright(first(x)[:, 0], layout).mT.float()[:, None, None])
    if data.align_yaw:
        x = torch.matmul(x, _turn(first(x), layout).float()[:, None, None])
    if data.normalize_size:
        x = x / _size(first(x), layout).float()[:, None, None, None, None]
    return torch.where(present_NM[:, :, None, None, None], x, 0.0)


def _turn(body_NTVC: Tensor, layout: SkeletonLayout) -> Tensor:
    """The matrices of `align_heading` for rows, float64 (N, 3, 3)."""
    time = torch.arange(body_NTVC.shape[1], device=body_NTVC.device)
    # The first eighth, one frame at least.
    early_T = (8 * (time + 1) <= body_NTVC.shape[1]) | (time == 0)
    weight_T11 = (early_T / early_T.sum())[:, None].double()
    across = torch.zeros_like(body_NTVC[:, 0, 0], dtype=torch.float64)
    for left, right in (layout.shoulders, layout.hips):
        apart = body_NTVC[:, :, right].double() - body_NTVC[:, :, left].double()
        across = across + (apart * weight_T11).sum(dim=1)
    x, z = across[:, 0], across[:, 2]
    length = torch.sqrt(x * x + z * z)
    seen = length > 0
    cosine = torch.where(seen, x / torch.where(seen, length, 1.0), 1.0)
    sine = torch.where(seen, z / torch.where(seen, length, 1.0), 0.0)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    rows = (cosine, zero, -sine), (zero, one, zero), (sine, zero, cosine)
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _upright(pose_NVC: Tensor, layout: SkeletonLayout) -> Tensor:
    """The matrices of `align_spine` for columns, float64 (N, 3, 3)."""
    first = pose_NVC.double()
    left, right = layout.shoulders
    spine = first[:, joint_above_root(layout)] - first[:, layout.center]
    up = _rotation_to(spine, 1)
    side = _rotation_to((up @ (first[:, right] - first[:, left])[:, :, None])[:, :, 0], 0)
    return side @ up


def _rotation_to(start_N3: Tensor, axis: int) -> Tensor:
    """`rotation_between` directions and a coordinate axis, float64 (N, 3, 3)."""
    eye = torch.eye(3, dtype=start_N3.dtype, device=start_N3.device)
    lengths = torch.sqrt((start_N3 * start_N3).sum(dim=1))
    seen = lengths >= 1e-12
    unit = start_N3 / torch.where(seen, lengths, 1.0)[:, None]
    cosine = unit[:, axis]
    opposite = cosine < -1 + 1e-9
    cross = _cross_matrix(torch.linalg.cross(unit, eye[axis].expand_as(unit)))
    turn = eye + cross + cross @ cross / torch.where(opposite, 1.0, 1 + cosine)[:, None, None]
    # Half a turn about any direction across.
    across = torch.linalg.cross(start_N3, eye[start_N3.abs().argmin(dim=1)])
    square = (across * across).sum(dim=1)
    usable = torch.where(square > 0, square, 1.0)[:, None, None]
    half = 2 * across[:, :, None] * across[:, None] / usable - eye
    turn = torch.where(opposite[:, None, None], half, turn)
    return torch.where(seen[:, None, None], turn, eye)


def _cross_matrix(axis_N3: Tensor) -> Tensor:
    x, y, z = axis_N3.unbind(-1)
    zero = torch.zeros_like(x)
    rows = (zero, -z, y), (z, zero, -x), (-y, x, zero)
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _size(body_NTVC: Tensor, layout: SkeletonLayout) -> Tensor:
    """The sizes of `body_size`, float64 (N,), those next to nothing raised to 1e-6."""
    offset = (body_NTVC - body_NTVC[:, :, layout.center, None]).double()
    return torch.sqrt((offset * offset).sum(dim=3).mean(dim=(1, 2))).clamp_min(1e-6)
