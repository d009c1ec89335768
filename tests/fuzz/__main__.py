"""`python -m tests.fuzz [TARGET ...] --inputs 5000 --seed 0 [--seconds 60]`: fuzzing.

Prints a row for each target as it ends, and ends with 1 if anything was found.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from tests.fuzz.runner import Tally, Worker
from tests.fuzz.target import BAD, GOOD, all_targets

SHOWN = 20  # defects of a target that are printed
_HEAD = "| target | inputs | accepted | refused | skipped | defects | inputs / s | slowest, s |"


def row(tally: Tally) -> str:
    """Return a target's row of the Markdown table."""
    if tally.unavailable:
        return f"| {tally.target} | not run: {tally.unavailable} |"
    kinds = [f"{tally.counts[kind]} {kind}" for kind in BAD if tally.counts[kind]]
    good = " | ".join(str(tally.counts[kind]) for kind in GOOD)
    speed = tally.inputs / max(tally.seconds, 1e-9)
    defects = ", ".join(kinds) or "0"
    return (
        f"| {tally.target} | {tally.inputs} | {good} | {defects} "
        f"| {speed:.0f} | {tally.slowest:.2f} |"
    )


def record(tallies: list[Tally], seed: int) -> dict[str, object]:
    """Return what is written as JSON."""
    return {
        "command": "python -m tests.fuzz " + " ".join(sys.argv[1:]),
        "date": datetime.date.today().isoformat(),
        "seed": seed,
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
        "inputs": sum(tally.inputs for tally in tallies),
        "targets": {
            tally.target: {
                "inputs": tally.inputs,
                "outcomes": {kind: tally.counts[kind] for kind in (*GOOD, *BAD)},
                "seconds": round(tally.seconds, 1),
                "slowest": round(tally.slowest, 3),
                "unavailable": tally.unavailable,
            }
            for tally in tallies
        },
        "found": [case for tally in tallies for case in tally.found],
    }


def main() -> None:
    """Fuzz the targets that are named, or all."""
    known = all_targets()
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(known)}")
    parser.add_argument("--inputs", type=int, default=5000, help="of each target")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="at most, for all targets together")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    unknown = [name for name in args.targets if name not in known]
    if unknown:
        parser.error(f"no target {unknown[0]}; there are {', '.join(known)}")
    names = args.targets or list(known)
    share = None if args.seconds is None else args.seconds / len(names)
    tallies = []
    print(f"{_HEAD}\n| --- |{' ---: |' * 7}", flush=True)
    with Worker() as worker:
        for name in names:
            numbers = range(args.first, args.first + args.inputs)
            tally = worker.run(name, known[name], args.seed, numbers, share)
            print(row(tally), flush=True)
            for case in tally.found[:SHOWN]:
                print(f"  input {case['input']}: {case['outcome']}: {case['detail']}", flush=True)
            tallies.append(tally)
    if args.out is not None:
        args.out.write_text(json.dumps(record(tallies, args.seed), indent=1) + "\n")
    found = sum(len(tally.found) for tally in tallies)
    print(f"{sum(tally.inputs for tally in tallies)} inputs, {found} defects")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
