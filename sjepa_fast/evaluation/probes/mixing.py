# SPDX-License-Identifier: Apache-2.0
"""Mixup: clips mixed in pairs, and the loss of what they are (Zhang et al., ICLR 2018).

Shapes: B clips, M bodies, N tokens, P numbers per token, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Beta
from torch.nn.functional import cross_entropy, one_hot


@dataclass(frozen=True)
class Mixed:
    """How the clips of a batch were mixed: clip i keeps `share` of itself, the rest is another."""

    share_B: Tensor | None = None
    other_B: Tensor | None = None

    def loss(self, logits_BC: Tensor, labels_B: Tensor, smoothing: float) -> Tensor:
        """Cross-entropy with the labels, mixed as the clips are, and smoothed."""
        if self.share_B is None or self.other_B is None:
            return cross_entropy(logits_BC, labels_B, label_smoothing=smoothing)
        own = one_hot(labels_B, logits_BC.shape[1]).to(logits_BC.dtype)
        target = torch.lerp(own[self.other_B], own, self.share_B[:, None])
        return cross_entropy(logits_BC, target, label_smoothing=smoothing)


class Mixing:
    """Draws, for each clip, another one of the batch and a share of Beta(alpha, alpha); 0 is off.

    The draws follow torch's own generator of the device.
    """

    def __init__(self, alpha: float, device: torch.device) -> None:
        shape = torch.tensor(alpha, device=device)
        # Checked by the recipe; here a GPU would have to be waited for.
        self.shares = Beta(shape, shape, validate_args=False) if alpha > 0 else None

    def mix(self, tokens: Tensor, bodies: int) -> tuple[Tensor, Mixed]:
        """Mix tokens (B*M, N, P), all bodies of a clip with those of the other."""
        if self.shares is None:
            return tokens, Mixed()
        batch = len(tokens) // bodies
        share, other = self.shares.sample((batch,)), torch.randperm(batch, device=tokens.device)
        whole = tokens.unflatten(0, (batch, bodies))
        mixed = torch.lerp(whole[other], whole, share[:, None, None, None])
        return mixed.flatten(0, 1), Mixed(share, other)
