# SPDX-License-Identifier: Apache-2.0
"""What a run writes down while it trains: rows of metrics, warnings, the line on the terminal."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import torch
from torch import Tensor

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.evaluation.collapse import collapse_panel
from sjepa_fast.runtime.logging import RunLog
from sjepa_fast.runtime.progress import Display
from sjepa_fast.runtime.saving import Saver
from sjepa_fast.training.health import Health
from sjepa_fast.training.setup import Setup
from sjepa_fast.training.step import StepResult, TrainStep


class Due(NamedTuple):
    """What is to be done after a step."""

    panel: bool
    knn: bool
    save: bool
    row: bool

    @staticmethod
    def after(step: int, total: int, config: TrainConfig, *, scored: bool) -> Due:
        """Return what is due after `step` of `total` steps.

        A curve of scores has its beginning (step 0) and its end, whatever the interval.
        """
        log, last = config.log, step == total
        panel = step % log.panel_every == 0 or last
        knn = scored and (last or (log.knn_every > 0 and step % log.knn_every == 0))
        save = step % config.checkpoint.every == 0 or last
        return Due(panel, knn, save, step % log.every == 0 or panel or knn or save)


class Recorder:
    """Reads what the steps have left on the device, at rows; only process 0 writes it.

    Args:
        setup: The run.
        train_step: Its step.
        health: Judges the steps.
        display: Shows them.
        log: Of process 0.
        saver: Of process 0.
    """

    def __init__(
        self,
        setup: Setup,
        train_step: TrainStep,
        health: Health,
        display: Display,
        log: RunLog | None,
        saver: Saver | None,
    ) -> None:
        self.setup, self.train_step, self.health = setup, train_step, health
        self.display, self.log, self.saver = display, log, saver
        self.logged_step = self.clocked_step = setup.start
        if setup.recent_K3 is not None:
            self.logged_step -= train_step.remember(setup.recent_K3, setup.start)
        self.clock = time.perf_counter()
        self.last_guess: Tensor | None = None
        """Labels that the finished encoder predicts for the test clips."""

    def begin(self) -> None:
        """Start the clock; the first row of a run that is begun has its score."""
        setup = self.setup
        if self.log is not None and math.isfinite(setup.before):
            self.log.row(0, {"knn": setup.before})
        self.clock = time.perf_counter()

    def since_logged(self, step: int) -> Tensor:
        """Return the history of the steps that are in no row yet, up to `step`."""
        return self.train_step.recent(step, step - self.logged_step)

    def record(self, step: int, result: StepResult, due: Due) -> None:
        """Judge the steps since the last row, in all processes; show them, and write the row.

        Without a row that is due it shows where a run was stopped, which then has the rows of one
        that was not.
        """
        setup, model = self.setup, self.setup.model
        values, warned = self.health.read(step, self.since_logged(step), setup.world)
        values["lr"] = setup.schedule.rates_S[step - 1].item()
        if model.target_encoder is not None:
            values["momentum"] = setup.schedule.momenta_S[step - 1].item()
        seconds = (time.perf_counter() - self.clock) / (step - self.clocked_step)
        values["ms_per_step"] = 1000 * seconds
        values["clips_per_second"] = setup.config.optim.batch_size / seconds
        if setup.device.type == "cuda":
            values["gpu_mb"] = torch.cuda.max_memory_allocated(setup.device) / 2**20
        if self.log is not None and self.saver is not None:
            if due.panel:
                temperature = setup.config.objective.temp_target
                panel = collapse_panel(result.features, model.center, temperature)
                values |= panel
                warned += self.health.judge(step, panel)
            if due.knn:
                guess, values["knn"] = setup.neighbours()
                self.last_guess = guess if step == setup.inputs.total else None
            values |= self.saver.last_stall()
            for warning in warned:
                self.display.note(warning)
            self.display.at(step, values)
            if due.row:
                self.log.row(step, values)
        if due.row:
            self.logged_step = step
        self.clocked_step, self.clock = step, time.perf_counter()
