# SPDX-License-Identifier: Apache-2.0
"""The classifier that fine-tuning trains: the encoder and the papers' action head.

Shapes: B clips, M bodies, S segments, V joints, N = S*V tokens, K kept ones, P numbers per token, D
width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from sjepa_fast.models.encoder import SkeletonTransformer
from sjepa_fast.models.transformer import init_weights

TimePool = Literal["joint", "pyramid"]
# How many equal parts of the time are averaged, one after the other.
PARTS: dict[TimePool, tuple[int, ...]] = {"joint": (1,), "pyramid": (1, 2, 4)}


def time_means(x_BMSVD: Tensor, parts: tuple[int, ...], kept_BMSV1: Tensor | None = None) -> Tensor:
    """Average over equal parts of the time, for 1 + 2 + 4 over the whole, halves and quarters.

    Parts of a number of segments that they do not divide share the segment between them. Of tokens
    that were dropped, zero here and in `kept`, the mean knows nothing; a part without any is zero.
    Returns (B, M, sum of parts, V, D).
    """
    count = x_BMSVD.shape[2]
    cuts = [(i * count // n, -(-(i + 1) * count // n)) for n in parts for i in range(n)]
    if kept_BMSV1 is None:
        means = [x_BMSVD[:, :, first:last].mean(dim=2) for first, last in cuts]
    else:
        means = [
            x_BMSVD[:, :, first:last].sum(dim=2)
            / kept_BMSV1[:, :, first:last].sum(dim=2).clamp_min(1)
            for first, last in cuts
        ]
    return torch.stack(means, dim=2)


class ActionHead(nn.Module):
    """Two-layer classifier over joint-wise features (method 6.2).

    Dropout on tokens, mean over time (or over parts of it, `TimePool`), joints side by side, mean
    over persons, Linear, BatchNorm, ReLU, Linear. Xavier initialisation is our choice. With D 256,
    V 25, hidden width 2,048 and 60 classes it has 13,236,284 parameters.
    """

    def __init__(
        self,
        width: int,
        joints: int,
        classes: int,
        hidden: int = 2048,
        dropout: float = 0.3,
        pool: TimePool = "joint",
    ) -> None:
        super().__init__()
        self.joints = joints
        self.parts = PARTS[pool]
        self.dropout = nn.Dropout(dropout)
        self.fc1 = nn.Linear(sum(self.parts) * joints * width, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.fc2 = nn.Linear(hidden, classes)
        init_weights(self)

    def forward(self, tokens_BMND: Tensor, kept_BMN1: Tensor | None = None) -> Tensor:
        """Return the scores (B, classes); of dropped tokens, `kept` is 0 and so are they."""
        x = self.dropout(tokens_BMND)
        batch, bodies, tokens, width = x.shape
        if kept_BMN1 is None and self.parts == (1,):
            x = x.view(batch, bodies, tokens // self.joints, self.joints * width).mean(dim=(1, 2))
        else:
            grid = (tokens // self.joints, self.joints)
            kept = None if kept_BMN1 is None else kept_BMN1.unflatten(2, grid)
            x = time_means(x.unflatten(2, grid), self.parts, kept).mean(dim=1).flatten(1)
        out: Tensor = self.fc2(self.norm(self.fc1(x)).relu())
        return out


class ActionClassifier(nn.Module):
    """An encoder with its final norm, which is trained too, and the action head."""

    def __init__(
        self,
        encoder: SkeletonTransformer,
        joints: int,
        classes: int,
        hidden: int,
        dropout: float,
        pool: TimePool = "joint",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.norm.normalized_shape[0]
        self.head = ActionHead(width, joints, classes, hidden, dropout, pool)

    def forward(
        self, tubelets_BNP: Tensor, bodies: int, ids_keep_BK: Tensor | None = None
    ) -> Tensor:
        """Return the scores (B, classes) of tubelets whose rows are clips x bodies.

        With ids the encoder sees these tokens alone, and the head averages over them.
        """
        tokens = self.encoder(tubelets_BNP, ids_keep_BK)
        kept = None
        if ids_keep_BK is not None:
            index = ids_keep_BK.long().unsqueeze(-1)
            all_of = (*tubelets_BNP.shape[:2], tokens.shape[2])
            tokens = tokens.new_zeros(all_of).scatter(1, index.expand_as(tokens), tokens)
            kept = tokens.new_zeros(*all_of[:2], 1).scatter(1, index, 1.0)
            kept = kept.view(-1, bodies, *kept.shape[1:])
        return self.head(tokens.view(-1, bodies, *tokens.shape[1:]), kept)  # type: ignore[no-any-return]
