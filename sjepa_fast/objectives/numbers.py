"""Targets made of the input's own numbers: coordinates or motion, normalised; and their loss.

Shapes: B sequences, S segments, V joints, N = S*V tokens (index segment*V + joint), l frames a
segment, C = 3 coordinates, P = l*C numbers a token, T = S*l frames, Q masked.
"""

from __future__ import annotations

import torch
from torch import Tensor

_EPS = 1e-6


def _frames(tubelets_BNP: Tensor, joints: int) -> Tensor:
    """The clip behind its tubelets, (B, T, V, C)."""
    batch, tokens, size = tubelets_BNP.shape
    grid = tubelets_BNP.view(batch, tokens // joints, joints, size // 3, 3).transpose(2, 3)
    return grid.reshape(batch, -1, joints, 3)


def _tubelets(x_BTVC: Tensor, tubelets_BNP: Tensor) -> Tensor:
    """The inverse of `_frames`, with the shape of `tubelets_BNP`."""
    batch, _, joints, coords = x_BTVC.shape
    length = tubelets_BNP.shape[2] // coords
    grid = x_BTVC.view(batch, -1, length, joints, coords).transpose(2, 3)
    return grid.reshape(tubelets_BNP.shape)


def motion(tubelets_BNP: Tensor, joints: int) -> Tensor:
    """Tubelets of the forward difference of frames, 0 at the last frame (MAMP, method 5.1)."""
    x = _frames(tubelets_BNP, joints)
    change = torch.zeros_like(x)
    change[:, :-1] = x[:, 1:] - x[:, :-1]
    return _tubelets(change, tubelets_BNP)


def normalized(tubelets_BNP: Tensor, joints: int, norm: str) -> Tensor:
    """Subtract the mean, divide by sqrt(unbiased variance + 1e-6).

    Args:
        tubelets_BNP: Target numbers.
        joints: V.
        norm: patch: over the P numbers of a token (MAMP, method 5.1); temporal: over the T frames
            of a joint's coordinate (method 5.2; its variance and epsilon are our choice); none.

    Returns:
        The normalised numbers, same shape.
    """
    if norm == "none":
        return tubelets_BNP
    x = _frames(tubelets_BNP, joints) if norm == "temporal" else tubelets_BNP
    dim = 1 if norm == "temporal" else 2
    var, mean = torch.var_mean(x, dim=dim, keepdim=True)
    x = (x - mean) / (var + _EPS).sqrt()
    return _tubelets(x, tubelets_BNP) if norm == "temporal" else x


def rows_at(rows_BNP: Tensor, ids_BQ: Tensor) -> Tensor:
    """Rows of each sequence at `ids`, (B, Q, P)."""
    return rows_BNP.gather(1, ids_BQ.long()[:, :, None].expand(-1, -1, rows_BNP.shape[2]))


def mean_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over all numbers, in float32 whatever the prediction was computed in."""
    target = target.view(prediction.shape)
    return torch.nn.functional.mse_loss(prediction.float(), target.float())
