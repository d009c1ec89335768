"""Which tokens the view encoder sees: motion-aware Gumbel selection and uniform selection.

Shapes: B clips, M bodies, N = S*V tokens, V joints, P numbers a token, K kept, Q masked.
"""

from __future__ import annotations

import torch
from torch import Tensor


def motion_intensity(tubelets_BNP: Tensor, joints: int) -> Tensor:
    """Mean absolute change of each tubelet against the one a segment earlier, (B, N).

    m[s, v] = mean_k |P[s, v, k] - P[s-1, v, k]|; segment 0 copies segment 1 (method 3.4, step 1).
    A single segment has no motion and scores zero.
    """
    batch, tokens, size = tubelets_BNP.shape
    grid = tubelets_BNP.view(batch, tokens // joints, joints, size)
    change = (grid[:, 1:] - grid[:, :-1]).abs().mean(dim=-1)
    if change.shape[1] == 0:
        return grid.new_zeros(batch, tokens)
    return torch.cat([change[:, :1], change], dim=1).flatten(1)


def gumbel(uniform: Tensor) -> Tensor:
    """Gumbel noise of a uniform draw: -log(-log(U + 1e-10) + 1e-10)."""
    noise: Tensor = -torch.log(-torch.log(uniform + 1e-10) + 1e-10)
    return noise


def motion_aware_keys(intensity_BN: Tensor, uniform_BN: Tensor, tau: float) -> Tensor:
    """Sort keys of motion-aware masking; the smallest stay visible.

    x = m / (tau max m + 1e-10); key = log softmax(x) + Gumbel (method 3.4, steps 2 and 3).
    """
    peak = intensity_BN.amax(dim=1, keepdim=True)
    scaled = intensity_BN / (peak * tau + 1e-10)
    return torch.log_softmax(scaled, dim=1) + gumbel(uniform_BN)


def select_smallest(keys_BN: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Split token ids by their keys.

    Args:
        keys_BN: One key a token.
        keep: K, how many tokens stay visible.

    Returns:
        `ids_keep` (B, K) with the smallest keys and `ids_mask` (B, N-K), both in rising id
        order, so that gathers walk memory forwards (the networks do not depend on the order).
    """
    order = keys_BN.argsort(dim=1)
    return order[:, :keep].sort(dim=1).values, order[:, keep:].sort(dim=1).values
