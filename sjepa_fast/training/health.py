# SPDX-License-Identifier: Apache-2.0
"""Whether a run is healthy: skipped steps, spikes, features that collapse, weights that are finite.

Everything is judged where the log reads the device anyway, so up to `log.every` steps late; what a
step that is not finite would do to the weights is prevented in the step itself. All processes judge
the same numbers and so agree. Shapes: C steps.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.evaluation.collapse import describe_collapse
from sjepa_fast.objectives.objective import Objective
from sjepa_fast.runtime.dist import World
from sjepa_fast.runtime.logging import read_metrics

# A step is a spike if it lies this many robust standard deviations above the median of the steps
# before it, of so many at most and at least (our choice).
SIGMAS, WINDOW, LEAST = 10, 128, 32
# What is watched, and the smallest deviation that is believed, as a share of the median: losses
# come closer together than the norms of gradients.
_WATCHED = (("loss", 0.01), ("gradient norm", 0.1))


class Health:
    """Counts what went wrong in a run, and says when it has to stop.

    Args:
        max_skipped: How many steps in a row may be skipped, less one.
        skipped: Steps that were skipped before, by the run that is resumed.
        spikes: Spikes that it saw.
    """

    def __init__(self, max_skipped: int, skipped: int = 0, spikes: int = 0) -> None:
        self.max_skipped, self.skipped, self.spikes = max_skipped, skipped, spikes
        self.in_a_row = 0
        self.failed: int | None = None
        """The last step skipped, counted from 0, once there were too many in a row."""
        self.broken: str | None = None
        """The weight or moment that is not finite, once one was found before a save."""
        self.last: list[float] = []
        self._windows: list[deque[float]] = [deque(maxlen=WINDOW) for _ in _WATCHED]
        self._silent_until = 0
        self._ranks: list[tuple[int, float]] = []
        self._collapses = False

    @staticmethod
    def of(config: TrainConfig, start: int) -> Health:
        """Begin, or go on with the counts that the run's metrics had at step `start`."""
        counted = {"skipped": 0, "spikes": 0}
        rows = [row for row in read_metrics(config.run) if row["step"] <= start] if start else []
        for row in rows:
            counted |= {name: int(row[name]) for name in counted if name in row}
        health = Health(config.runtime.max_skipped, **counted)
        for row in rows:
            health.judge(int(row["step"]), row)
        return health

    @property
    def stops(self) -> bool:
        """Whether the run has to stop."""
        return self.failed is not None or self.broken is not None

    def read(self, end: int, recent_C3: Tensor, world: World) -> tuple[dict[str, float], list[str]]:
        """Judge the steps before step `end`, rows of `TrainStep.recent`; reads the device once.

        Returns their metrics, and warnings to print. The loss is the mean over the steps that were
        not skipped, NaN if all were; `skipped` and `spikes` count from the beginning of the run and
        are left out while they are 0.
        """
        # Losses are those of one process; the rest is the same in all.
        recent_C3[:, 0] = world.sum_(recent_C3[:, 0].clone()) / world.size
        rows: list[list[float]] = recent_C3.tolist()
        first, warnings = end - len(rows), []
        for step, row in enumerate(rows, start=first):
            if row[2]:
                self.skipped += 1
                self.in_a_row += 1
                if self.in_a_row >= self.max_skipped:
                    self.failed, self.last = step, row
            else:
                self.in_a_row = 0
                warnings += self._spikes(step, row[:2])
        losses = [loss for loss, _, skipped in rows if not skipped]
        values = {"loss": statistics.fmean(losses) if losses else math.nan}
        values["grad_norm"] = rows[-1][1]
        counts = {"skipped": self.skipped, "spikes": self.spikes}
        return values | {name: count for name, count in counts.items() if count}, warnings

    def judge(self, step: int, panel: Mapping[str, float]) -> list[str]:
        """Read a row with a collapse panel; returns a warning when features begin to collapse.

        A row without a panel, or whose rank is NaN as that of a skipped step, says nothing.
        """
        rank = panel.get("effective_rank", math.nan)
        if math.isnan(rank):
            return []
        self._ranks.append((step, rank))
        found = describe_collapse(self._ranks, bool(panel.get("collapsed")))
        begins = found is not None and not self._collapses
        self._collapses = found is not None
        hint = "python -m sjepa_fast.doctor RUN names a flag to try"
        return [f"warning: {found}; {hint}"] if begins else []

    def _spikes(self, step: int, row: Sequence[float]) -> list[str]:
        found = []
        for (name, share), window, value in zip(_WATCHED, self._windows, row, strict=True):
            if len(window) >= LEAST:
                median = statistics.median(window)
                spread = 1.4826 * statistics.median(abs(x - median) for x in window)
                if value > median + SIGMAS * max(spread, share * abs(median)):
                    found.append(f"{name} {value:.4g} (median {median:.4g})")
            window.append(value)
        if not found:
            return []
        self.spikes += 1
        if step < self._silent_until:
            return []
        self._silent_until = step + WINDOW
        return [f"warning: a spike at step {step + 1}: {', '.join(found)}"]

    def may_save(self, model: Objective, optimizer: torch.optim.Optimizer, world: World) -> bool:
        """Whether all that a checkpoint holds is finite; if not, `broken` says what is not.

        The same in all processes, though each has weights and moments of its own.
        """
        self.broken = first_broken(model, optimizer)
        if world.size > 1:
            here = next(model.parameters()).device
            found = world.sum_(torch.tensor(float(self.broken is not None), device=here))
            if self.broken is None and found.item():
                self.broken = "a tensor of another process"
        return self.broken is None


@torch.no_grad()
def first_broken(model: Objective, optimizer: torch.optim.Optimizer) -> str | None:
    """Return the name of the first weight, buffer or moment that is not finite; one device read."""
    named = dict(model.state_dict())
    for name, weight in model.named_parameters():
        for key, value in optimizer.state.get(weight, {}).items():
            named[f"{key} of {name}"] = value
    kept = {name: x for name, x in named.items() if x.is_floating_point() and x.numel() and x.ndim}
    largest = torch.stack(torch._foreach_norm(list(kept.values()), math.inf))
    broken = (~torch.isfinite(largest)).tolist()
    return next((name for name, bad in zip(kept, broken, strict=True) if bad), None)
