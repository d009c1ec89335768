# SPDX-License-Identifier: Apache-2.0
"""The papers' linear probe (method 6.1) on cached features, several learning rates at once.

Shapes: N training rows, Q test rows, D features, C classes, L learning rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sjepa_fast.evaluation.metrics import accuracy


@dataclass(frozen=True)
class ProbeResult:
    """Outcome of one learning rate: accuracies in percent and the last epoch's scores."""

    lr: float
    last: float
    best: float
    best_epoch: int
    scores_QC: Tensor

    @property
    def predicted_Q(self) -> Tensor:
        """Labels predicted after the last epoch."""
        return self.scores_QC.argmax(dim=-1)


def linear_probe(
    train: Callable[[int], Tensor],
    labels_N: Tensor,
    test_QD: Tensor,
    test_labels_Q: Tensor,
    classes: int,
    *,
    lrs: tuple[float, ...] = (0.1,),
    epochs: int = 100,
    batch: int = 256,
    seed: int = 0,
) -> list[ProbeResult]:
    """Train BatchNorm (no affine) and a linear layer by SGD on frozen features.

    Momentum 0.9, no weight decay, cosine to 0 without warm-up, weights N(0, 0.01), batch 256 (all
    rows when there are fewer). The normalisation keeps running statistics with momentum 0.1 and
    eps 1e-6 like the reference; it does not depend on the weights, so all rates share it.

    Args:
        train: Gives the training features (N, D) of an epoch; constant when cached.
        labels_N: Training labels.
        test_QD: Test features.
        test_labels_Q: Test labels.
        classes: C.
        lrs: Peak learning rates, swept in one pass.
        epochs: Passes over the training features.
        batch: Rows per step; an epoch's last batch is dropped if it is not full.
        seed: Seed of initialisation and order.

    Returns:
        One result for each rate; papers report `best`, the best test epoch.
    """
    device, width = test_QD.device, test_QD.shape[1]
    generator = torch.Generator().manual_seed(seed)
    rows = len(labels_N)
    batch = min(batch, rows)
    weight = torch.nn.init.trunc_normal_(
        torch.empty(width, classes), std=0.01, generator=generator
    ).to(device)
    weight_LDC = weight.expand(len(lrs), -1, -1).clone().requires_grad_()
    bias_L1C = torch.zeros(len(lrs), 1, classes, device=device, requires_grad=True)
    speed = [torch.zeros_like(p) for p in (weight_LDC, bias_L1C)]
    rates = torch.tensor(lrs, device=device).view(-1, 1, 1)
    mean, variance = torch.zeros(width, device=device), torch.ones(width, device=device)
    total, step = epochs * (rows // batch), 0
    best = [(0.0, 0)] * len(lrs)
    scores_LQC = torch.zeros(len(lrs), len(test_labels_Q), classes, device=device)
    for epoch in range(epochs):
        features = train(epoch)
        order = torch.randperm(rows, generator=generator).to(device)
        for chunk in torch.split(order[: rows // batch * batch], batch):
            x = features[chunk]
            var, now = torch.var_mean(x, dim=0, correction=0)
            mean.lerp_(now, 0.1)
            variance.lerp_(var * len(x) / max(1, len(x) - 1), 0.1)
            scores_LBC = ((x - now) / (var + 1e-6).sqrt()) @ weight_LDC + bias_L1C
            target = labels_N[chunk].expand(len(lrs), -1)
            # The sum over rates keeps each rate's gradient its own mean over the batch.
            loss = cross_entropy(scores_LBC.flatten(0, 1), target.flatten(), reduction="sum")
            gradients = torch.autograd.grad(loss / len(x), (weight_LDC, bias_L1C))
            decay = 0.5 * (1 + math.cos(math.pi * step / total))
            with torch.no_grad():
                for p, v, g in zip((weight_LDC, bias_L1C), speed, gradients, strict=True):
                    v.mul_(0.9).add_(g)
                    p.sub_(rates * decay * v)
            step += 1
        with torch.no_grad():
            scaled = (test_QD - mean) / (variance + 1e-6).sqrt()
            scores_LQC = scaled @ weight_LDC + bias_L1C
        now_right = [accuracy(scores.argmax(dim=-1), test_labels_Q) for scores in scores_LQC]
        # The first of equal epochs counts.
        best = [max(b, (r, -epoch - 1)) for b, r in zip(best, now_right, strict=True)]
    return [
        ProbeResult(lr, accuracy(scores.argmax(dim=-1), test_labels_Q), top, -epoch, scores)
        for lr, (top, epoch), scores in zip(lrs, best, scores_LQC, strict=True)
    ]
