# SPDX-License-Identifier: Apache-2.0
"""L2 multinomial logistic regression, solved to its optimum; the linear probe of small sets.

Shapes: N training rows, Q test rows, D features, C classes, r <= min(N, D) retained directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


@dataclass(frozen=True)
class Logistic:
    """A fitted classifier: scores = x @ weight + bias."""

    weight_DC: Tensor
    bias_C: Tensor

    def scores(self, x_QD: Tensor) -> Tensor:
        """Return the class scores (Q, C) of each row."""
        return x_QD.double() @ self.weight_DC + self.bias_C

    def predict(self, x_QD: Tensor) -> Tensor:
        """Return the most likely label of each row."""
        return self.scores(x_QD).argmax(dim=1)


def penalised_loss(
    x_ND: Tensor, labels_N: Tensor, weight_DC: Tensor, bias_C: Tensor, c: float
) -> Tensor:
    """Sum of cross-entropies plus |W|^2 / (2 C); the intercept is free."""
    loss = cross_entropy(x_ND @ weight_DC + bias_C, labels_N, reduction="sum")
    return loss + weight_DC.square().sum() / (2 * c)


def fit_logistic(
    x_ND: Tensor, labels_N: Tensor, classes: int, c: float, iterations: int = 500
) -> Logistic:
    """Fit by L-BFGS in float64 on the row space of the features, which the caller has scaled.

    The optimum of an L2-penalised model lies in the span of the rows, so an SVD to at most N
    directions changes nothing and makes wide features (thousands) cheap. `c` is the inverse
    penalty.
    """
    x = x_ND.double()
    _, singular, directions = torch.linalg.svd(x, full_matrices=False)
    kept = singular > singular[0] * 1e-10
    basis_Dr = directions[kept].T
    reduced = x @ basis_Dr
    weight = torch.zeros(reduced.shape[1], classes, dtype=x.dtype, device=x.device)
    bias = torch.zeros(classes, dtype=x.dtype, device=x.device)
    weight.requires_grad_()
    bias.requires_grad_()
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=iterations,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = penalised_loss(reduced, labels_N, weight, bias, c)
        loss.backward()
        return loss

    solver.step(closure)
    return Logistic(basis_Dr @ weight.detach(), bias.detach())
