# SPDX-License-Identifier: Apache-2.0
"""`python -m sjepa_fast.train`: pre-trains an encoder, in one loop from data to scored run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor

from sjepa_fast import cli
from sjepa_fast.config.files import check_resumable, parse_train, read_config
from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.config.validation import validate
from sjepa_fast.data.facts import facts_of
from sjepa_fast.data.feed import check_backend
from sjepa_fast.data.store import Store
from sjepa_fast.errors import InputError
from sjepa_fast.names import say
from sjepa_fast.opening import read_json
from sjepa_fast.reporting.write import try_page
from sjepa_fast.run_folder import describe_run
from sjepa_fast.runtime.boards import check_boards
from sjepa_fast.runtime.checkpoint import list_checkpoints
from sjepa_fast.runtime.device import pick_device
from sjepa_fast.runtime.dist import World, connect, disconnect, environment_world
from sjepa_fast.runtime.files import remove_leftovers
from sjepa_fast.runtime.lock import lock_run
from sjepa_fast.runtime.progress import Display
from sjepa_fast.runtime.saving import failed_to_write, what_is_kept
from sjepa_fast.training.continuing import open_start, origin_of
from sjepa_fast.training.diagnosis import diagnose
from sjepa_fast.training.inputs import load_inputs, open_data
from sjepa_fast.training.loop import Loop
from sjepa_fast.training.report import write_report
from sjepa_fast.training.setup import Setup, set_up


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
    begins_with = open_start(config, store.layout)
    inputs = load_inputs(config, store, device)
    with contextlib.ExitStack() as owned:
        if world.leads:
            owned.enter_context(own_run(config, store))
        world.barrier()
        setup = set_up(config, inputs, world, device, begins_with)
        # What only the loop needs, and the report after it no more.
        with contextlib.ExitStack() as stack:
            loop = Loop(setup, display, stack)
            loop.run()
        finished = loop.step == inputs.total
        if loop.health.stops:
            why = diagnose(loop.train_step, loop.health, store, inputs.sampled, inputs.sampled_part)
            if world.leads:
                say(why, to_stderr=True)
        elif finished and world.leads:
            display.phase("report")
            _report(setup, loop.recorder.last_guess)
        world.barrier()
        disconnect(world)
    if loop.health.stops:
        return 1
    return 0 if finished else loop.signals.exit_code


def _report(setup: Setup, last_guess: Tensor | None) -> None:
    """Score a finished run, draw its pictures and write its page; say where they are."""
    config, store, clips = setup.config, setup.inputs.store, setup.inputs.clips
    try:
        for line in write_report(config, store, clips, setup.model, setup.dtype, last_guess):
            say(line)
    except OSError as error:
        raise failed_to_write(config.run, "the report", error) from error
    say(try_page(config.run, store, clips, setup.model))


def main(argv: list[str] | None = None) -> None:
    """Console entry: parse, train, exit with 0, 1, 2 (usage), 129, 130 or 143 (stopped, saved)."""
    cli.run_main(lambda: train(parse_train(cli.arguments(argv), facts_of, origin_of)))


if __name__ == "__main__":
    main()
