# SPDX-License-Identifier: Apache-2.0
"""Per-step schedules of learning rate and EMA momentum, as functions of the step and as tables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sjepa_fast.config.schema import TrainConfig


def learning_rate(step: int, total: int, warmup: int, peak: float, end: float) -> float:
    """Learning rate of a zero-based step: linear 0 -> peak over the warm-up, then cosine to end.

    Source: method section 3.6 (per-iteration update, absolute values).
    """
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return end + (peak - end) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def ema_momentum(
    step: int, total: int, start: float, end: float, form: Literal["cosine", "linear"] = "cosine"
) -> float:
    """EMA momentum of the zero-based step t of a schedule of T steps; the end value stays after it.

    cosine: end - (end - start) (cos(pi t / T) + 1) / 2, 0.9999 -> 1.0 over the whole run (method
    3.6); linear: start + (end - start) t / T (method 4.5).
    """
    progress = min(1.0, step / max(1, total))
    if form == "linear":
        return start + (end - start) * progress
    return end - (end - start) * (math.cos(math.pi * progress) + 1.0) / 2.0


@dataclass(frozen=True)
class Schedule:
    """The values of all S steps, on the device, where a step looks up its own."""

    rates_S: Tensor  # learning rates, float32 as the fused optimiser reads them
    momenta_S: Tensor  # momenta of the target encoder, float64: 1 - m loses digits in float32


def tabulate(config: TrainConfig, total: int, warmup: int, device: torch.device) -> Schedule:
    """Tabulate the schedules of a run of `total` steps; EMA lengths are in the run's unit."""
    optim, objective = config.optim, config.objective
    ema_steps = objective.ema_length * (total // optim.length) or total
    start, end, form = objective.ema_start, objective.ema_end, objective.ema_schedule
    rates = [learning_rate(s, total, warmup, optim.lr, optim.lr_end) for s in range(total)]
    momenta = [ema_momentum(s, ema_steps, start, end, form) for s in range(total)]
    return Schedule(
        torch.tensor(rates, dtype=torch.float32, device=device),
        torch.tensor(momenta, dtype=torch.float64, device=device),
    )
