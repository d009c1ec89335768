"""Masks and views of the plain S-JEPA step, drawn with torch's own generator.

Shapes: B clips, M bodies, T frames, V joints, C = 3 coordinates, S segments, N = S*V tokens,
P = l*C numbers per token, K kept tokens.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

PELVIS, MID_SHOULDER = 0, 20
MIRROR_PAIRS = ((4, 8), (5, 9), (6, 10), (7, 11), (12, 16), (13, 17), (14, 18), (15, 19))
HAND_PAIRS = ((21, 23), (22, 24))


def motion_aware_keys(x_BTVC: Tensor, length: int, tau: float) -> Tensor:
    """Sort keys whose smallest stay visible (method 3.4).

    m[s, v] = mean_k |P[s, v, k] - P[s-1, v, k]| with row 0 a copy of row 1;
    key = log softmax(m / (tau max m + 1e-10)) - log(-log(U + 1e-10) + 1e-10).
    """
    batch, frames, joints, coords = x_BTVC.shape
    grid = x_BTVC.view(batch, frames // length, length, joints, coords)
    patches_BSVP = grid.permute(0, 1, 3, 2, 4).reshape(batch, -1, joints, length * coords)
    motion = torch.zeros_like(patches_BSVP)
    motion[:, 1:] = torch.abs(patches_BSVP[:, 1:] - patches_BSVP[:, :-1])
    motion[:, 0] = motion[:, 1]
    intensity_BN = motion.mean(dim=-1).flatten(1)
    peak = intensity_BN.max(dim=-1, keepdim=True).values
    scaled = intensity_BN / (peak * tau + 1e-10)
    uniform = torch.rand_like(scaled)
    noise = -torch.log(-torch.log(uniform + 1e-10) + 1e-10)
    return torch.log(torch.softmax(scaled, dim=-1)) + noise


def keys_of_given_ids(ids_keep_BK: Tensor, tokens: int) -> Tensor:
    """Sort keys that put the given ids first, in their order, then the others in theirs."""
    batch, kept = ids_keep_BK.shape
    device = ids_keep_BK.device
    keys = torch.arange(kept, kept + tokens, device=device).repeat(batch, 1)
    return keys.scatter(1, ids_keep_BK.long(), torch.arange(kept, device=device).repeat(batch, 1))


def mask_from_keys(keys_BN: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids_keep (B, K), ids_restore (B, N) and the mask (B, N), 1 where hidden."""
    ids_shuffle = torch.argsort(keys_BN, dim=1)
    ids_restore = torch.argsort(ids_shuffle, dim=1)
    mask = torch.ones(keys_BN.shape, device=keys_BN.device)
    mask[:, :kept] = 0
    return ids_shuffle[:, :kept], ids_restore, torch.gather(mask, 1, ids_restore)


@cache
def _mirror(joints: int, device: torch.device) -> tuple[Tensor, Tensor]:
    # Kept on the device: a copy in every step would make the host wait.
    swap = list(range(joints))
    for left, right in MIRROR_PAIRS + HAND_PAIRS:
        swap[left], swap[right] = right, left
    return torch.tensor(swap, device=device), torch.tensor([-1.0, 1.0, 1.0], device=device)


def random_view(x_BMTVC: Tensor, angle: float, shift: float, flip: float) -> Tensor:
    """One geometric view of each clip (method 3.3; 25-joint layout), the same for all bodies.

    Rotation about the first body's pelvis-to-mid-shoulder axis by U(-angle, angle) rad (Rodrigues),
    about its clip-mean pelvis; mirror in x with left and right joints swapped, with probability
    `flip`; translation by U(-shift, shift) metres per axis. Absent (all-zero) bodies stay zero.
    """
    batch, device = x_BMTVC.shape[0], x_BMTVC.device
    swap, sign = _mirror(x_BMTVC.shape[3], device)
    spine = (x_BMTVC[:, 0, :, MID_SHOULDER] - x_BMTVC[:, 0, :, PELVIS]).mean(dim=1)
    axis = spine / spine.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    theta = (2 * torch.rand(batch, device=device) - 1) * angle
    cross = torch.zeros(batch, 3, 3, device=device)
    cross[:, 0, 1], cross[:, 0, 2], cross[:, 1, 2] = -axis[:, 2], axis[:, 1], -axis[:, 0]
    cross = cross - cross.transpose(1, 2)
    sine, versine = theta.sin()[:, None, None], (1 - theta.cos())[:, None, None]
    rotation = torch.eye(3, device=device) + sine * cross + versine * (cross @ cross)
    pivot = x_BMTVC[:, 0, :, PELVIS].mean(dim=1)[:, None, None, None]
    moved = torch.einsum("bmtvc,bdc->bmtvd", x_BMTVC - pivot, rotation)
    mirrored = moved.index_select(3, swap) * sign
    chosen = (torch.rand(batch, device=device) < flip)[:, None, None, None, None]
    moved = torch.where(chosen, mirrored, moved)
    offset = (2 * torch.rand(batch, 3, device=device) - 1) * shift
    present = (x_BMTVC != 0).flatten(2).any(dim=2)[:, :, None, None, None]
    return torch.where(present, moved + pivot + offset[:, None, None, None], x_BMTVC)
