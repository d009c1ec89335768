"""The sections of the report, and how they share its time."""

from __future__ import annotations

from typing import NamedTuple


class Section(NamedTuple):
    """One section: the function that measures it, and its part of the time."""

    name: str
    place: str
    """module:function; the function gets a `Book`."""
    on_gpu: float
    """Seconds of the nine minutes on a GPU."""
    small: float
    """Seconds of a small report, on a CPU."""


# The most wanted come first; wrong values before any time.
SECTIONS = (
    Section("values", "benchmarks.report.values:values", 40, 10),
    Section("ceilings", "benchmarks.report.devices:ceilings", 10, 10),
    # Before the steps, which take the fastest.
    Section("attention", "benchmarks.report.devices:attention_section", 45, 15),
    Section("steps", "benchmarks.report.steps:rungs", 165, 30),
    Section("breakdown", "benchmarks.report.runs:breakdown", 25, 15),
    Section("bodies and masks", "benchmarks.report.runs:bodies", 20, 15),
    Section("long run", "benchmarks.report.runs:long_run", 35, 10),
    Section("growth", "benchmarks.report.runs:growth", 40, 15),
    Section("hours", "benchmarks.report.runs:projections", 20, 15),
    Section("operations", "benchmarks.report.ops:ops", 100, 30),
)
MINUTES = 9.0
# A section that does not end by itself is ended this many seconds after its time.
GRACE = 20.0
# For the pictures, at the end.
PICTURES = 15.0


def last_end(start: float, minutes: float) -> float:
    """Return when the last section's time is up, so that all ends after so many minutes.

    What is left is for a last section that has to be ended, and for the pictures.
    """
    return start + 60 * minutes - GRACE - PICTURES


def budget(names: list[str], small: bool, left: float) -> float:
    """Return the seconds of the first of the sections to do, if all share `left` seconds.

    Each gets its part of them. So what an earlier section left over goes to all later ones, what
    one took too much is missing to all of them, and together they never take more than there is.
    """
    parts = {s.name: s.small if small else s.on_gpu for s in SECTIONS}
    return left * parts[names[0]] / sum(parts[name] for name in names)
