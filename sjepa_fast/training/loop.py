# SPDX-License-Identifier: Apache-2.0
"""The steps of a run, from where it begins to its end, a signal, or what makes it stop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor

from sjepa_fast.config.files import to_dict
from sjepa_fast.data.feed import open_feed
from sjepa_fast.runtime.compile_cache import cache_file, load_compiled, save_compiled
from sjepa_fast.runtime.files import write_json, write_text
from sjepa_fast.runtime.guard import GuardedStep
from sjepa_fast.runtime.logging import RunLog, environment
from sjepa_fast.runtime.progress import Display
from sjepa_fast.runtime.saving import Saver, what_is_kept
from sjepa_fast.runtime.signals import StopSignals
from sjepa_fast.training.flops import step_flops
from sjepa_fast.training.health import Health
from sjepa_fast.training.profiling import PassClock, ProfiledStep
from sjepa_fast.training.recorder import Due, Recorder
from sjepa_fast.training.setup import Setup
from sjepa_fast.training.step import StepResult, TrainStep
from sjepa_fast.training.trial import try_step
from sjepa_fast.training.verify import VerifiedStep


class Loop:
    """A run in one process, ready for its first step.

    Args:
        setup: The run.
        display: Shows it.
        stack: Closes feed, log and saver, and gives the signals back, when the loop is over.
    """

    def __init__(self, setup: Setup, display: Display, stack: contextlib.ExitStack) -> None:
        config, world, inputs = setup.config, setup.world, setup.inputs
        self.setup, self.display, self.step = setup, display, setup.start
        self.together = config.objective.target_every
        self.signals = stack.enter_context(StopSignals(lambda: what_is_kept(config.run)))
        calls = range(setup.start // self.together, inputs.total // self.together)
        feed = open_feed(inputs.sampled, inputs.sampled_part, config, world, calls)
        fed, self.batches = stack.enter_context(feed)
        parts = setup.model, setup.optimizer, setup.dtype, world, setup.schedule
        self.train_step = TrainStep(config, fed, *parts, setup.start)
        self.health = Health.of(config, setup.start)
        self.parts = world.size * config.optim.accumulate
        self.compiled = self._load_compiled()
        self.take_step = self._wrapped()
        self.log: RunLog | None = None
        self.saver: Saver | None = None
        if world.leads:
            log = RunLog(config.run, setup.start, config.log.to, to_dict(config))
            saver = Saver(config.run, config.checkpoint.keep, setup.model, setup.optimizer)
            self.log, self.saver = stack.enter_context(log), stack.enter_context(saver)
            self._describe()
        self.recorder = Recorder(setup, self.train_step, self.health, display, self.log, self.saver)

    def _sequences(self) -> int:
        """Distinct sequences in a process's part of a batch."""
        clips, batch = self.train_step.clips, self.setup.config.optim.batch_size
        return clips.distinct_sequences(batch // self.parts)

    def _load_compiled(self) -> Path | None:
        """Load what an earlier start has compiled; returns the file for it, None without."""
        if not self.train_step.compiles:
            return None
        setup = self.setup
        config, joints = setup.config, setup.inputs.store.layout.joints
        optim = config.optim.batch_size, config.optim.accumulate
        # All that decides the shapes and formulas of a step.
        decides = (config.model, config.objective, config.mask, config.data, *optim)
        described = " ".join(map(str, (*decides, joints, self._sequences(), setup.dtype)))
        file = cache_file(described, setup.device)
        load_compiled(file)
        return file

    def _wrapped(self) -> Callable[[Tensor], StepResult]:
        """Put around the step what verifies, guards and, if asked for, profiles it."""
        setup, step, config = self.setup, self.train_step, self.setup.config
        take_step: Callable[[Tensor], StepResult] = GuardedStep(
            VerifiedStep(step, config.runtime.verify, resumed=setup.start > 0),
            step.eager,
            config.optim.batch_size,
            setup.world.size,
            setup.device,
            accumulate=config.optim.accumulate,
            trial=partial(try_step, step) if setup.device.type == "cuda" else None,
            compiled=step.compiles,
            compares=config.objective.regularizer != "none",
        )
        if not config.log.profile or not setup.world.leads:
            return take_step
        joints, distinct = setup.inputs.store.layout.num_joints, self.parts * self._sequences()
        flops = step_flops(config, joints, target_sequences=distinct).total / setup.world.size
        passes = PassClock(setup.model, setup.optimizer, setup.device)
        folder = config.run / "profile"
        return ProfiledStep(take_step, step.eager, passes, flops, setup.dtype, folder)

    def _describe(self) -> None:
        """Write down and say what is trained on what, in process 0."""
        setup, run, store = self.setup, self.setup.config.run, self.setup.inputs.store
        described = environment(setup.device, setup.dtype, setup.why_dtype)
        write_json(run / "env.json", described)
        names = [str(store.names[i]) for i in setup.inputs.train_ids.tolist()]
        write_text(run / "train_ids.txt", "\n".join(names) + "\n")
        self.display.note(
            f"{store.name}: {len(names)} training clips, {setup.inputs.total} steps of "
            f"{setup.config.optim.batch_size}; {setup.device}, {str(setup.dtype)[6:]} "
            f"({setup.why_dtype})"
        )
        if setup.inputs.unscored is not None:
            self.display.note(f"no kNN scores: {setup.inputs.unscored.value}")
        if setup.start:
            self.display.note(f"resumed at step {setup.start}")

    def run(self) -> None:
        """Take the steps that are left, with rows, scores and saves where they are due."""
        setup, total, world = self.setup, self.setup.inputs.total, self.setup.world
        first, warm = self.train_step.beginning
        warm *= self.together
        self.display.count(
            "step", total, setup.start, now=lambda: self.step, first=first, warm=warm
        )
        self.recorder.begin()
        began = time.perf_counter()
        while self.step < total and self.signals.stop is None and not self.health.stops:
            result = self.take_step(next(self.batches))
            self.step += self.together
            if self.step == setup.start + self.together and self.compiled and world.leads:
                save_compiled(self.compiled)
            if self.step == setup.start + warm:
                self.display.at(self.step)
            if world.size == 1:
                self.signals.agree(world, setup.device)
            scored = setup.inputs.unscored is None
            due = Due.after(self.step, total, setup.config, scored=scored)
            if due.row or self.signals.stop is not None:
                self.recorder.record(self.step, result, due)
                if world.size > 1:
                    # One process may have got the signal to stop; all must stop at the same step.
                    self.signals.agree(world, setup.device)
            self._save(due)
        if self.saver is not None:
            self.saver.finish()
            self.display.leave()
            seconds = time.perf_counter() - began
            self.display.note(
                f"{self.step - setup.start} steps in {seconds:.1f} s{self.saver.stalled()}"
            )
            if self.step < total and self.signals.stop is not None:
                kept = what_is_kept(setup.config.run)
                self.display.note(f"stopped by {self.signals.stop.name}: {kept}")

    def _save(self, due: Due) -> None:
        """Save where it is due, or the run stops; broken weights must not replace good ones."""
        setup = self.setup
        if not due.save and self.signals.stop is None and not self.health.stops:
            return
        sound = self.health.may_save(setup.model, setup.optimizer, setup.world)
        if sound and self.saver is not None:
            # Where steps are skipped, what was saved before may be all that a run can go on from:
            # weights may be finite, and their gradients no more.
            drop = self.health.in_a_row == 0
            self.saver.save(self.step, self.recorder.since_logged(self.step), drop=drop)
