# SPDX-License-Identifier: Apache-2.0
"""LeJEPA's minimal step (Balestriero and LeCun 2025): agreeing views whose features are normal.

No teacher, no stop-gradient, no schedule but the learning rate's. `SigReg` draws its directions on
the device from a seed and a step, so that nothing is read back and a resumed run goes on with them.
With `VisReg()` in its place the loss is VISReg's; `VicReg()`, too, is a loss of (V, N, D).

Shapes: V views, N samples, D outputs of the projector.
"""

import torch
from torch import Tensor, nn

from sjepa_kernels import SigReg


class LeJepa:
    """(1 - lambda) mean (mean_v z - z)^2 + lambda R(z), for an encoder and its projector.

    Args:
        encoder: From a batch to the features that are kept.
        projector: From a feature to D numbers, which the loss is of.
        weight: lambda. Where a paper adds lambda' R to the first term with a weight of 1,
            lambda = lambda' / (1 + lambda'), but for a common factor.
        regularizer: R; by default `SigReg` along 256 random directions a step.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        weight: float = 0.02,
        regularizer: nn.Module | None = None,
    ) -> None:
        self.model = nn.Sequential(encoder, projector)
        self.regularizer = SigReg(256) if regularizer is None else regularizer
        self.regularizer.to(next(encoder.parameters()).device)
        self.weight = weight

    def loss(self, views: list[Tensor]) -> Tensor:
        """Return the loss of V views of the same N samples; in float32, also under autocast.

        Args:
            views: One batch per view, all of one size.

        Returns:
            The 0-dim loss.
        """
        z_VND = self.model(torch.cat(views)).unflatten(0, (len(views), -1)).float()
        apart = (z_VND.mean(0) - z_VND).square().mean()
        return torch.lerp(apart, self.regularizer(z_VND), self.weight)

    def step(self, views: list[Tensor], optimizer: torch.optim.Optimizer) -> Tensor:
        """Train on one batch and return its loss."""
        loss = self.loss(views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()
