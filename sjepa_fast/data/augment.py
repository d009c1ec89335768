"""Views of a clip on its device: rotation about the body's own axis, tilt, shift and mirror.

Shapes: B clips, M bodies, T frames, V joints, C = 3 coordinates. All draws are counter-based:
(seed, step, clip id) fixes them on any device and for any number of processes.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from sjepa_fast.config import ViewConfig
from sjepa_fast.skeletons import SkeletonLayout
from sjepa_kernels import philox4x32, uniform

CROP, VIEW, MASK = 0, 1, 2


def clip_uniforms(seed: Tensor, step: Tensor, ids_B: Tensor, stream: int, count: int) -> Tensor:
    """Draw uniforms in [0, 1) that depend on (seed, step, clip id, stream) alone.

    Args:
        seed: 0-dim int64.
        step: 0-dim int64.
        ids_B: Clip ids, int64.
        stream: Which use the numbers are for (CROP, VIEW or MASK).
        count: Numbers a clip.

    Returns:
        (B, count) float32.
    """
    counters = torch.arange((count + 3) // 4, device=ids_B.device)
    words = philox4x32(seed, counters[None, :], ids_B[:, None], step, stream)
    drawn = torch.stack([uniform(word) for word in words], dim=-1).flatten(1)
    return drawn[:, :count]


@cache
def _constants(layout: SkeletonLayout, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    # Made once for a device: a copy from the host in every step would make the host wait.
    flip = torch.tensor(layout.flip_permutation(), device=device)
    mirror = torch.tensor([-1.0, 1.0, 1.0], device=device)
    return flip, mirror, torch.eye(3, device=device)


def rotation_about(axis_B3: Tensor, angle_B: Tensor) -> Tensor:
    """Rodrigues' rotation matrices: R = I + sin(a) K + (1 - cos(a)) K K.

    Args:
        axis_B3: Unit axes.
        angle_B: Angles in radians.

    Returns:
        (B, 3, 3), to be applied to column vectors.
    """
    x, y, z = axis_B3.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).view(-1, 3, 3)
    eye = torch.eye(3, device=axis_B3.device, dtype=axis_B3.dtype)
    sine, cosine = angle_B.sin()[:, None, None], angle_B.cos()[:, None, None]
    return eye + sine * cross + (1 - cosine) * (cross @ cross)


def body_axis(x_BMTVC: Tensor, layout: SkeletonLayout) -> Tensor:
    """Unit vector from pelvis to mid-shoulder of the first body, clip mean, (B, 3).

    A body without extent (all zeros) gets the vertical.
    """
    spine = (x_BMTVC[:, 0, :, layout.spine_top] - x_BMTVC[:, 0, :, layout.center]).mean(dim=1)
    length = spine.norm(dim=-1, keepdim=True)
    _, _, unit = _constants(layout, spine.device)
    return torch.where(length > 1e-6, spine / length.clamp_min(1e-6), unit[1])


def random_view(
    x_BMTVC: Tensor, uniforms_B7: Tensor, layout: SkeletonLayout, view: ViewConfig
) -> Tensor:
    """One geometric view of each clip, the same for both bodies.

    Rotation about the body's axis (Rodrigues) after tilts about x and z, all about the clip-mean
    pelvis of the first body; then a mirror in the x of that pivot with joint swap, then a shift.
    Absent bodies (all-zero) stay zero. Source: method 3.3; ranges and pivot are our choice.

    Args:
        x_BMTVC: Clips in metres.
        uniforms_B7: Draws in [0, 1): angle, tilt x, tilt z, shift x, y, z, flip.
        layout: Joint names and mirror pairs.
        view: Ranges.

    Returns:
        The transformed clips, same shape.
    """
    signed = uniforms_B7 * 2 - 1
    flip, mirror, unit = _constants(layout, x_BMTVC.device)
    axis = body_axis(x_BMTVC, layout)
    rotate = rotation_about(axis, signed[:, 0] * view.rotation)
    if view.tilt > 0:
        tilt_x = rotation_about(unit[0].expand_as(axis), signed[:, 1] * view.tilt)
        tilt_z = rotation_about(unit[2].expand_as(axis), signed[:, 2] * view.tilt)
        rotate = tilt_z @ tilt_x @ rotate
    present = (x_BMTVC != 0).flatten(2).any(dim=2)[:, :, None, None, None]
    pivot = x_BMTVC[:, 0, :, layout.center].mean(dim=1)[:, None, None, None, :]
    moved = torch.einsum("bmtvc,bdc->bmtvd", x_BMTVC - pivot, rotate)
    if view.flip > 0:
        mirrored = moved[..., flip, :] * mirror
        chosen = (uniforms_B7[:, 6] < view.flip)[:, None, None, None, None]
        moved = torch.where(chosen, mirrored, moved)
    shift = (signed[:, 3:6] * view.translation)[:, None, None, None, :]
    return torch.where(present, moved + pivot + shift, x_BMTVC)
