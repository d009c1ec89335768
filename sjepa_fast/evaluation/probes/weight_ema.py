# SPDX-License-Identifier: Apache-2.0
"""The moving average of a classifier's weights, which is scored in place of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sjepa_kernels import EmaPlan


class WeightEma:
    """Follows weights and floating-point buffers, such as BatchNorm's statistics, after each step.

    The momentum of step t is the smaller of `momentum` and (1 + t) / (10 + t), so that a short
    training is not an average with its beginning. 0 is off: the weights themselves are scored.
    Steps are counted on the device, so that a step in a CUDA graph counts too.
    """

    def __init__(self, model: nn.Module, momentum: float) -> None:
        self.momentum = momentum
        self.live = [x for x in model.state_dict().values() if x.is_floating_point()]
        self.steps = torch.zeros((), device=self.live[0].device)
        self.average = [x.clone() for x in self.live] if momentum > 0 else []
        self.plan = EmaPlan(self.average, self.live) if momentum > 0 else None

    def update(self) -> None:
        """Move the average towards the weights."""
        if self.plan is not None:
            self.steps += 1
            early = (1 + self.steps) / (10 + self.steps)
            self.plan.update_(early.clamp_max(self.momentum))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average where the weights are, while the block lasts."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def keep(self) -> None:
        """Put the average where the weights are, for good."""
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, live in zip(self.average, self.live, strict=False):
            weights = live.clone()
            live.copy_(average)
            average.copy_(weights)
