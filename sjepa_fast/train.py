# SPDX-License-Identifier: Apache-2.0
"""`python -m sjepa_fast.train`: pre-trains an encoder, in one loop from data to scored run."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sjepa_fast import cli
from sjepa_fast.build import build_model, build_optimizer
from sjepa_fast.config.files import check_resumable, parse_train, read_config, to_dict
from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.config.validation import LARGEST, validate, validate_tokens
from sjepa_fast.data.facts import facts_of
from sjepa_fast.data.feed import check_backend, open_clips, open_feed
from sjepa_fast.data.store import Store, open_store
from sjepa_fast.data.synthetic import write_synthetic_store
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.collapse import collapse_panel
from sjepa_fast.evaluation.features import nearest_neighbour
from sjepa_fast.evaluation.labelled import lacking
from sjepa_fast.evaluation.metrics import accuracy
from sjepa_fast.names import say
from sjepa_fast.opening import read_json
from sjepa_fast.reporting.write import try_page
from sjepa_fast.run_folder import describe_run
from sjepa_fast.runtime.boards import check_boards
from sjepa_fast.runtime.checkpoint import list_checkpoints, resume
from sjepa_fast.runtime.compile_cache import cache_file, load_compiled, save_compiled
from sjepa_fast.runtime.device import pick_device
from sjepa_fast.runtime.dist import World, connect, disconnect, environment_world
from sjepa_fast.runtime.files import remove_leftovers, write_json, write_text
from sjepa_fast.runtime.guard import GuardedStep
from sjepa_fast.runtime.lock import lock_run
from sjepa_fast.runtime.logging import RunLog, environment
from sjepa_fast.runtime.preflight import preflight
from sjepa_fast.runtime.progress import Display
from sjepa_fast.runtime.saving import Saver, failed_to_write, what_is_kept
from sjepa_fast.runtime.schedule import tabulate
from sjepa_fast.runtime.signals import StopSignals
from sjepa_fast.training.continuing import open_start, origin_of, start_from
from sjepa_fast.training.diagnosis import diagnose
from sjepa_fast.training.flops import step_flops
from sjepa_fast.training.health import Health
from sjepa_fast.training.precision import pick_dtype
from sjepa_fast.training.profiling import PassClock, ProfiledStep
from sjepa_fast.training.report import write_report
from sjepa_fast.training.step import StepResult, TrainStep
from sjepa_fast.training.trial import try_step
from sjepa_fast.training.verify import VerifiedStep


def open_data(config: TrainConfig, world: World) -> tuple[TrainConfig, Store]:
    """Open the configured store, or the embedded synthetic one, which is made on first use."""
    root = config.data.root
    if root is None:
        if not config.data.synthetic:
            fix = "add --data.root STORE (made by sjepa_fast.prepare) or --data.synthetic"
            raise InputError("data.root", "not given", fix)
        root = config.run.parent / "synthetic"
        if world.leads and not (root / "store.json").exists():
            write_synthetic_store(root)
        world.barrier()
        data = dataclasses.replace(config.data, root=root)
        config = dataclasses.replace(config, data=data)
    return config, open_store(root)


@contextlib.contextmanager
def own_run(config: TrainConfig, store: Store) -> Iterator[None]:
    """Make the run folder and own it while the block lasts; check that this start may write it."""
    try:
        (config.run / "results").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fix = "choose a writable folder"
        raise InputError("run", f"{config.run}: {error.strerror}", fix) from error
    with lock_run(config.run):
        prepare_run(config, store)
        yield


def prepare_run(config: TrainConfig, store: Store) -> None:
    """Check that this start may write into the run folder, and write down how it was begun."""
    written = config.run / "config.yaml"
    if list_checkpoints(config.run):
        if config.resume != "auto":
            fix = "add --resume auto to continue it, or choose another --run"
            raise InputError("run", f"{config.run} already holds a run", fix)
        check_resumable(config, read_config(written))
        begun = read_json("run", config.run / "data.json").get("fingerprint")
        if begun != store.fingerprint:
            value = f"{config.data.root} holds other clips or splits than when the run began"
            raise InputError("data.root", value, "restore that store, or choose another --run")
    remove_leftovers(config.run, "*.yaml", "*.json", "*.jsonl", "*.txt", "*.png", "*.html")
    remove_leftovers(config.run / "results", "knn-before.json", "knn-before-after.json")
    remove_leftovers(config.run / "checkpoints", "step-*")
    describe_run(config, store)


def run_lengths(config: TrainConfig, clips: int) -> tuple[int, int]:
    """Return (steps of the run, warm-up steps); the last part batch of an epoch is dropped.

    So are the last steps that are too few to share a batch by `objective.target_every`.
    """
    per_epoch = clips // config.optim.batch_size
    if per_epoch == 0:
        value = f"{config.optim.batch_size} is larger than the {clips} training clips"
        raise InputError("optim.batch_size", value, f"use --optim.batch-size {clips} or less")
    unit = per_epoch if config.optim.unit == "epochs" else 1
    total, together = config.optim.length * unit, config.objective.target_every
    if total > LARGEST["optim.length"]:
        fix = f"give at most {LARGEST['optim.length']}"
        raise InputError("optim.length", f"{config.optim.length} epochs are {total} steps", fix)
    if total < together:
        value = f"{together} of the run's {total} steps"
        raise InputError("objective.target_every", value, "choose fewer, or a longer run")
    return total - total % together, config.optim.warmup * unit


def check_shares(config: TrainConfig, world: World) -> None:
    """Raise InputError if processes, and the parts of `optim.accumulate`, cannot share a batch."""
    batch, parts = config.optim.batch_size, config.optim.accumulate
    if batch % world.size:
        fix = f"choose a multiple of the {world.size} processes"
        raise InputError("optim.batch_size", batch, fix)
    compares = config.objective.regularizer != "none"
    if compares and batch // world.size < 2:
        value = f"{batch} for {world.size} processes"
        fix = f"objective.regularizer {config.objective.regularizer} takes two or more of each"
        raise InputError("optim.batch_size", value, fix)
    if batch % (world.size * parts):
        share = f"{batch // world.size} clips of each process"
        fix = "choose a divisor of that number"
        raise InputError("optim.accumulate", f"{parts} does not divide the {share}", fix)


def check_sets(config: TrainConfig, store: Store) -> None:
    """Raise InputError if sets are to be drawn otherwise than in proportion, but there are none."""
    power = config.data.set_power
    if power != 1 and not store.sets:
        value = f"{power:g}, but {store.root} is one set"
        raise InputError("data.set_power", value, "use a pool (prepare merge), or 1")


def what_is_compiled(config: TrainConfig, store: Store, slots: int, dtype: torch.dtype) -> str:
    """Describe all that decides the shapes and formulas of a step."""
    optim = config.optim.batch_size, config.optim.accumulate
    parts = (config.model, config.objective, config.mask, config.data, *optim)
    return " ".join(map(str, (*parts, store.layout.joints, slots, dtype)))


def train(config: TrainConfig) -> int:
    """Train one run with checkpoints, score it and draw its pictures.

    Returns 0 when the run is complete; 1 when its steps or weights were not finite; when a signal
    stopped it and it is saved, 128 and the signal's number: 130 for Ctrl-C, 143 for SIGTERM, 129
    for SIGHUP. A Ctrl-C beside the steps raises KeyboardInterrupt, which says what is saved.
    """
    validate(config)
    check_backend(config.data)
    check_boards(config.log.to)
    world = environment_world()
    with Display(world.leads) as display:
        try:
            return _train(config, world, display)
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt(str(interrupt) or what_is_kept(config.run)) from None


def _train(config: TrainConfig, world: World, display: Display) -> int:
    display.note(f"run folder: {config.run}")
    display.phase("loading")
    device = pick_device(config.runtime, world.local_rank)
    connect(world, device)
    config, store = open_data(config, world)
    validate_tokens(config, store.layout.num_joints)
    check_shares(config, world)
    check_sets(config, store)
    begins_with = open_start(config, store.layout)
    train_part = store.ids(config.data.split, "train")
    knn_part = store.labelled(config.data.split, "train")[: config.eval.knn_clips]
    test_part = store.labelled(config.data.split, "test")
    unscored = lacking(store, config.data.split)
    knn_every = config.log.knn_every
    clips = open_clips(store, config.data, device)
    sampled, sampled_part = clips, train_part
    if config.data.skip_empty_bodies:
        sampled, sampled_part = clips.split_bodies(train_part)
    total, warmup = run_lengths(config, len(sampled_part))
    with contextlib.ExitStack() as owned:
        if world.leads:
            owned.enter_context(own_run(config, store))
        world.barrier()
        dtype, reason = pick_dtype(config, store.layout.num_joints, device, world)
        config = preflight(config, device, dtype, world)

        used = (train_part, knn_part, test_part)
        train_ids, knn_ids, test_ids = (torch.from_numpy(part).to(device) for part in used)
        model = build_model(config, clips, train_ids, device)
        optimizer = build_optimizer(model, config)

        def neighbours() -> tuple[Tensor, float]:
            guess = nearest_neighbour(model.eval_encoder, clips, knn_ids, test_ids, config, dtype)
            return guess, accuracy(guess, clips.labels_N[test_ids])

        start, before = 0, math.nan
        resumed = resume(config.run, model, optimizer, world)
        if resumed is not None:
            start = resumed.step
        else:
            if begins_with is not None:
                start_from(begins_with, model, config, world)
            if world.leads and unscored is None:
                _, before = neighbours()
                write_json(config.run / "results" / "knn-before.json", {"top1": before})
        schedule = tabulate(config, total, warmup, device)

        together = config.objective.target_every
        last_guess: Tensor | None = None
        # What only the loop needs, and the report after it no more.
        stack = owned.enter_context(contextlib.ExitStack())
        signals = stack.enter_context(StopSignals(lambda: what_is_kept(config.run)))
        calls = range(start // together, total // together)
        feed = open_feed(sampled, sampled_part, config, world, calls)
        fed, batches = stack.enter_context(feed)
        train_step = TrainStep(config, fed, model, optimizer, dtype, world, schedule, start)
        step = logged_step = clocked_step = start
        if resumed is not None:
            logged_step -= train_step.remember(resumed.recent_K3, start)
        health = Health.of(config, start)
        parts = world.size * config.optim.accumulate
        compiled: Path | None = None
        if train_step.compiles:
            slots = fed.distinct_sequences(config.optim.batch_size // parts)
            compiled = cache_file(what_is_compiled(config, store, slots, dtype), device)
            load_compiled(compiled)
        take_step: Callable[[Tensor], StepResult] = GuardedStep(
            VerifiedStep(train_step, config.runtime.verify, resumed=start > 0),
            train_step.eager,
            config.optim.batch_size,
            world.size,
            device,
            accumulate=config.optim.accumulate,
            trial=partial(try_step, train_step) if device.type == "cuda" else None,
            compiled=train_step.compiles,
            compares=config.objective.regularizer != "none",
        )
        first, warm = train_step.beginning
        if config.log.profile and world.leads:
            distinct = parts * fed.distinct_sequences(config.optim.batch_size // parts)
            counted = step_flops(config, store.layout.num_joints, target_sequences=distinct)
            flops = counted.total / world.size
            passes = PassClock(model, optimizer, device)
            take_step = ProfiledStep(
                take_step, train_step.eager, passes, flops, dtype, config.run / "profile"
            )
        log: RunLog | None = None
        saver: Saver | None = None
        if world.leads:
            log = stack.enter_context(RunLog(config.run, start, config.log.to, to_dict(config)))
            saver = stack.enter_context(Saver(config.run, config.checkpoint.keep, model, optimizer))
            write_json(config.run / "env.json", environment(device, dtype, reason))
            names = "\n".join(str(store.names[i]) for i in train_part)
            write_text(config.run / "train_ids.txt", names + "\n")
            display.note(
                f"{store.name}: {len(train_part)} training clips, {total} steps of "
                f"{config.optim.batch_size}; {device}, {str(dtype)[6:]} ({reason})"
            )
            if unscored is not None:
                display.note(f"no kNN scores: {unscored.value}")
            if start:
                display.note(f"resumed at step {start}")
            elif math.isfinite(before):
                log.row(0, {"knn": before})
        warm *= together
        display.count("step", total, start, now=lambda: step, first=first, warm=warm)
        began = clock = time.perf_counter()
        while step < total and signals.stop is None and not health.stops:
            result = take_step(next(batches))
            step += together
            if compiled is not None and step == start + together and world.leads:
                save_compiled(compiled)
            if step == start + warm:
                display.at(step)

            if world.size == 1:
                signals.agree(world, device)
            panel_due = step % config.log.panel_every == 0 or step == total
            # A curve of scores has its beginning (step 0) and its end, whatever the interval.
            knn_due = step == total or (knn_every > 0 and step % knn_every == 0)
            knn_due = knn_due and unscored is None
            save_due = step % config.checkpoint.every == 0 or step == total
            row_due = step % config.log.every == 0 or panel_due or knn_due or save_due
            if row_due or signals.stop is not None:
                recent = train_step.recent(step, step - logged_step)
                values, warned = health.read(step, recent, world)
                values["lr"] = schedule.rates_S[step - 1].item()
                if model.target_encoder is not None:
                    values["momentum"] = schedule.momenta_S[step - 1].item()
                now = time.perf_counter()
                seconds = (now - clock) / (step - clocked_step)
                values["ms_per_step"] = 1000 * seconds
                values["clips_per_second"] = config.optim.batch_size / seconds
                if device.type == "cuda":
                    values["gpu_mb"] = torch.cuda.max_memory_allocated(device) / 2**20
                if log is not None and panel_due:
                    panel = collapse_panel(
                        result.features, model.center, config.objective.temp_target
                    )
                    values |= panel
                    warned += health.judge(step, panel)
                if log is not None and knn_due:
                    guess, values["knn"] = neighbours()
                    last_guess = guess if step == total else None
                if log is not None and saver is not None:
                    values |= saver.last_stall()
                    for warning in warned:
                        display.note(warning)
                    display.at(step, values)
                    # A run that was stopped has the rows of one that was not.
                    if row_due:
                        log.row(step, values)
                if row_due:
                    logged_step = step
                clocked_step, clock = step, time.perf_counter()
                if world.size > 1:
                    # One process may have got the signal to stop; all must stop at the same step.
                    signals.agree(world, device)
            stops = signals.stop is not None or health.stops
            # Broken weights must not replace good ones.
            sound = (save_due or stops) and health.may_save(model, optimizer, world)
            if saver is not None and sound:
                saver.save(step, train_step.recent(step, step - logged_step))
        if log is not None and saver is not None:
            saver.finish()
            display.leave()
            display.note(
                f"{step - start} steps in {time.perf_counter() - began:.1f} s{saver.stalled()}"
            )
            if step < total and signals.stop is not None:
                display.note(f"stopped by {signals.stop.name}: {what_is_kept(config.run)}")
        stack.close()
        if health.stops:
            why = diagnose(train_step, health, store, sampled, sampled_part)
            if world.leads:
                say(why, to_stderr=True)
        elif step == total and world.leads:
            display.phase("report")
            try:
                for line in write_report(config, store, clips, model, dtype, last_guess):
                    say(line)
            except OSError as error:
                raise failed_to_write(config.run, "the report", error) from error
            say(try_page(config.run, store, clips, model))
        world.barrier()
        disconnect(world)
    if health.stops:
        return 1
    return signals.exit_code if step < total else 0


def main(argv: list[str] | None = None) -> None:
    """Console entry: parse, train, exit with 0, 1, 2 (usage), 129, 130 or 143 (stopped, saved)."""
    cli.run_main(lambda: train(parse_train(cli.arguments(argv), facts_of, origin_of)))


if __name__ == "__main__":
    main()
