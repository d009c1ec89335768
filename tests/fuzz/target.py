"""What a fuzz target is, and where all of them are found.

A module of this folder that has `TARGETS`, a tuple of `Target`, is fuzzed. Everything runs in a
worker process with little memory, an alarm and an audit hook (`worker.py`), so a target needs no
guards of its own.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Of what may happen to an input, what is right.
GOOD = ("accepted", "refused", "skipped")
# And what is a defect: an exception, a dead process, ten seconds, 512 MiB, code that ran or a write
# outside of the input's folder, text that a terminal would obey.
BAD = ("TRACEBACK", "CRASH", "HANG", "MEMORY", "EXECUTED", "RAW")
# Defects planted for the tests of the harness.
PLANTED = "planted"


class Unavailable(Exception):
    """Raised by a setup where this machine lacks something; the target is left out, by name."""


class Crashed(Exception):
    """Raised by a run that watches a process of its own, which has died."""


def nothing(folder: Path) -> None:
    """Set nothing up."""


@dataclass(frozen=True)
class Target:
    """Something that opens strangers' files.

    `make(rng, folder)` writes one mutated input into an empty folder, by draws of `rng` alone, and
    returns what `run` takes. `run` opens it and returns None or "accepted" if it could be used, or
    "skipped: reason" if it was listed and passed over; it lets InputError through, which counts as
    refused. It may also call a command's `main` and let SystemExit through.

    `setup(folder)` is called once in each worker, before the limits hold: put slow imports there,
    what all inputs start from, and one run of a good file, so that memory is counted from then on.
    """

    name: str
    make: Callable[[random.Random, Path], Any]
    run: Callable[[Any], str | None]
    setup: Callable[[Path], None] = nothing


def modules() -> list[str]:
    """Return the names of the modules that may have targets."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py"))
    return [name for name in names if not name.startswith(("_", "test_")) and name != PLANTED]


def targets_of(module: str) -> dict[str, Target]:
    """Import a module of this folder and return its targets by name."""
    found = importlib.import_module(f"tests.fuzz.{module}")
    return {target.name: target for target in getattr(found, "TARGETS", ())}


def all_targets() -> dict[str, str]:
    """Return the module of every target by name."""
    return {name: module for module in modules() for name in targets_of(module)}
