# SPDX-License-Identifier: Apache-2.0
"""The collapse panel (method 3.7): is the representation still varied?

A falling loss is no evidence of learning, and a low target entropy is no sign of collapse (near
one-hot targets are normal from the first step at temperature 0.06); neither enters the verdict.
Shapes: R rows (tokens), D features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_ROWS = 4096
# A rank that has fallen to this share of its best is a collapse that came late.
FALLEN = 0.5


def effective_rank(x_RD: Tensor) -> Tensor:
    """Exp of the entropy of the normalised singular values of the centered rows (RankMe).

    NaN where the rows are not finite, which they may be in a step that was skipped.
    """
    # The decomposition raises where it does not converge.
    finite = torch.isfinite(x_RD).all()
    x_RD = torch.where(finite, x_RD, 0.0)
    values = torch.linalg.svdvals((x_RD - x_RD.mean(dim=0)).float())
    share = values / values.sum().clamp_min(1e-12)
    entropy: Tensor = -(share * share.clamp_min(1e-12).log()).sum()
    return torch.where(finite, entropy.exp(), math.nan)


def _sample(rows_RD: Tensor) -> Tensor:
    # Steps of the golden section reach all clips. A step coprime to the row count, a multiple of
    # the joint count, takes every joint equally often and no row twice.
    count = len(rows_RD)
    if count <= MAX_ROWS:
        return rows_RD
    step = round(0.618 * count)
    while math.gcd(step, count) != 1:
        step += 1
    return rows_RD[torch.arange(MAX_ROWS, device=rows_RD.device) * step % count]


@torch.no_grad()
def collapse_panel(
    features: Tensor, center_D: Tensor | None, temp_target: float
) -> dict[str, float]:
    """Measure features, with one copy from the device.

    Args:
        features: Encoder features (..., D); at most 4,096 spread-out rows are used.
        center_D: The center, where the objective has a target softmax.
        temp_target: Temperature of the target softmax.

    Returns:
        effective_rank (1..D), channel_std (mean over channels), channel_std_min, mean_cosine of
        the rows with each other as they are (1: all point one way), and collapsed (1 or 0, from
        rank and deviation alone); with a center also center_norm, target_entropy in nats (0..ln D),
        argmax_share of the most frequent channel and argmax_perplexity.
    """
    rows = _sample(features.detach().reshape(-1, features.shape[-1]).float())
    deviation = rows.std(dim=0)
    direction = torch.nn.functional.normalize(rows, dim=1).mean(dim=0)
    measured = {
        "effective_rank": effective_rank(rows),
        "channel_std": deviation.mean(),
        "channel_std_min": deviation.min(),
        "mean_cosine": direction.square().sum(),
    }
    if center_D is not None:
        log_p = torch.log_softmax((rows - center_D.float()) / temp_target, dim=1)
        hot = torch.nn.functional.one_hot(log_p.argmax(dim=1), rows.shape[1])
        counts = hot.float().mean(dim=0)
        measured |= {
            "center_norm": center_D.float().norm(),
            "target_entropy": -(log_p.exp() * log_p).sum(dim=1).mean(),
            "argmax_share": counts.max(),
            "argmax_perplexity": (-(counts * counts.clamp_min(1e-12).log()).sum()).exp(),
        }
    values = torch.stack(list(measured.values())).tolist()
    panel: dict[str, float] = dict(zip(measured, values, strict=True))
    panel["collapsed"] = float(is_collapsed(panel))
    return panel


def is_collapsed(panel: dict[str, float]) -> bool:
    """Whether rank or deviation is so low that the rows hardly differ (our limits).

    A high cosine alone may come from a constant offset, which centering removes.
    """
    return panel["effective_rank"] < 2.0 or panel["channel_std"] < 1e-3


def describe_collapse(ranks: Sequence[tuple[int, float]], collapsed: bool) -> str | None:
    """Say how the features of a run have collapsed, or begin to; None where they do not.

    `ranks` are its (step, effective rank) so far, oldest first, at least one; `collapsed` is the
    last panel's verdict.
    """
    best, (step, last) = max(ranks, key=lambda pair: pair[1]), ranks[-1]
    if collapsed:
        return f"the features have collapsed, effective rank {last:.1f} at step {step}"
    if last < FALLEN * best[1]:
        return (
            f"the effective rank has fallen from {best[1]:.1f} at step {best[0]} to {last:.1f} at "
            f"step {step}, a collapse that comes late"
        )
    return None
