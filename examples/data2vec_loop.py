# SPDX-License-Identifier: Apache-2.0
"""A data2vec step (Baevski et al. 2022): regress averaged layers of a moving-average teacher.

`ContextualizedTargets` adds up the normalised layers one at a time, so that the mean needs no copy
of them all; `EmaPlan` checks the parameter lists once and then moves all of them in one call
per step.

Shapes: B sequences, N tokens, D width.
"""

import copy
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from sjepa_kernels import ContextualizedTargets, EmaPlan


class Encoder(Protocol):
    """A transformer that masks its inputs at `masked_BN` and returns the output of each block."""

    def __call__(self, x: Tensor, masked_BN: Tensor | None) -> list[Tensor]: ...


def averaged_targets(layers: list[Tensor], top: int) -> Tensor:
    """Return the mean of the last `top` layers, each normalised over its width, (B, N, D)."""
    targets = ContextualizedTargets(top, norm="layer", final_norm=False)
    for x_BND in layers[-top:]:
        targets.add_(x_BND)
    return targets.finish()


def momentum_at(step: int, start: float, end: float, steps: int) -> float:
    """Return the teacher's momentum: linear from `start` to `end`, then constant."""
    return end - (end - start) * max(0.0, 1 - step / steps)


class Data2Vec:
    """Student, teacher and the head that predicts the teacher's averaged layers.

    Args:
        student: An `Encoder` that is a module.
        head: From a student's token to a target, D to D.
        top: How many of the teacher's last layers are averaged.
        beta: Where the loss turns from squared to linear.
    """

    def __init__(self, student: nn.Module, head: nn.Module, top: int, beta: float = 1.0) -> None:
        self.student, self.head, self.top, self.beta = student, head, top, beta
        self.teacher = copy.deepcopy(student).eval().requires_grad_(False)
        self.plan = EmaPlan(list(self.teacher.parameters()), list(student.parameters()))

    def loss(self, x: Tensor, masked_BN: Tensor) -> Tensor:
        """Return the smooth L1 loss at the masked tokens."""
        with torch.no_grad():
            target_BND = averaged_targets(self.teacher(x, None), self.top)
        predicted_BND = self.head(self.student(x, masked_BN)[-1])
        return smooth_l1_loss(predicted_BND[masked_BN], target_BND[masked_BN], beta=self.beta)

    def step(
        self, x: Tensor, masked_BN: Tensor, optimizer: torch.optim.Optimizer, momentum: float
    ) -> Tensor:
        """Train on one batch: the student by its gradient, then the teacher by its average."""
        loss = self.loss(x, masked_BN)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        self.plan.update_(momentum)
        return loss.detach()
