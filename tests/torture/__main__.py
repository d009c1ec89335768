"""`python -m tests.torture`: kills training runs until a number of SIGKILLs is reached.

Every objective, in one and in two processes: a run is killed at random times, before a random
change of a file and inside writes, resumed, killed again, and at last left to finish. It must then
be equal to the run that nobody killed, bit for bit, and its folder must hold nothing more. Prints a
table; exit code 1 if anything is wrong.
"""

from __future__ import annotations

import os

# Before torch is imported: a process that has started threads cannot be forked safely.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import argparse
import datetime
import json
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.conftest import cpu_name
from benchmarks.report.page import wrapped
from benchmarks.tables import between
from sjepa_fast.config.files import parse_train
from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.config.traits import TRAITS
from sjepa_fast.data.synthetic import write_synthetic_store
from tests.tiny import AIMS, flags, words_of_run
from tests.torture.compare import compare
from tests.torture.victim import PLACES, Plan, attempt

# Of a run that takes a second: twelve checkpoints, of which two are kept.
LENGTHS = {
    "runtime.dtype": "float32",
    "optim.length": 24,
    "optim.warmup": 2,
    "checkpoint.every": 2,
    "checkpoint.keep": 2,
    "log.every": 3,
    "log.panel-every": 6,
    "log.knn-every": 12,
    "objective.target-layers": 1,
}
BEGIN, END = "<!-- torture begin -->", "<!-- torture end -->"
MOST_KILLS = 8  # of one run
# A write of such a run takes less.
WRITE_S = 0.002
COLUMNS = ("runs", "kills", *PLACES, "both", "resumes", "restarts", "tensors", "rows", "files")
WRONG = ("differences", "failures", "leftovers")


Row = dict[str, Any]


@dataclass
class Cell:
    """One objective in one or two processes: what happened to its runs."""

    objective: str
    processes: int
    counts: Counter[str] = field(default_factory=Counter)
    wrong: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in WRONG})

    def row(self) -> Row:
        """Return the counts as one row of the table."""
        counted = {name: self.counts[name] for name in COLUMNS}
        bad = {name: len(found) for name, found in self.wrong.items()}
        return {"objective": self.objective, "processes": self.processes, **counted, **bad}


def config_of(store: Path, run: Path, objective: str) -> TrainConfig:
    """Return a tiny run of an objective, which resumes if there is something to resume."""
    aim = {f"objective.{key}": value for key, value in AIMS[objective].items()}
    return parse_train(words_of_run(store, run, *flags(LENGTHS | aim), "--resume=auto"))


def draw_plan(dice: random.Random, processes: int, seconds: float, operations: int) -> Plan:
    """Choose where to kill an attempt that would last so long and change so many files."""
    place = dice.choice(PLACES)
    both = processes > 1 and dice.random() < 0.5
    if place == "any time":
        # All ranks may die; only process 0 writes.
        return Plan(place, dice.uniform(0, seconds), rank=dice.randrange(processes), both=both)
    return Plan(place, dice.uniform(0, WRITE_S), 1 + dice.randrange(operations * 2 // 3), both=both)


class Torturer:
    """Runs of one cell, in a scratch folder, against the same uninterrupted run."""

    def __init__(self, cell: Cell, store: Path, work: Path, seed: int) -> None:
        self.cell, self.work = cell, work / f"{cell.objective}-{cell.processes}"
        self.store, self.seed, self.number = store, seed, 0
        self.work.mkdir()
        # Drawn by name, so that a part of the cells is killed as in the whole.
        self.dice = random.Random(f"{seed} {cell.objective} {cell.processes}")
        self.reference = self.work / "whole"
        begin = time.monotonic()
        whole = config_of(store, self.reference, cell.objective)
        ending = attempt(whole, cell.processes, Plan(), self.work / "whole.txt")
        if ending.codes != [0] * cell.processes:
            sys.exit(f"a run without kills failed: {(self.work / 'whole.txt').read_text()}")
        self.seconds, self.operations = time.monotonic() - begin, ending.operations

    def kill_one_run(self, most: int) -> None:
        """Kill and resume one run up to `most` times, let it finish, compare it."""
        self.number += 1
        cell, name = self.cell, f"run-{self.number}"
        run, output = self.work / name, self.work / f"{name}.txt"
        config, kills, done = config_of(self.store, run, cell.objective), 0, False
        begun = False
        while not done:
            plan = Plan()
            if kills < most:
                plan = draw_plan(self.dice, cell.processes, self.seconds, self.operations)
            if begun:
                saved = any(run.glob("checkpoints/step-*"))
                cell.counts["resumes" if saved else "restarts"] += 1
            ending, begun = attempt(config, cell.processes, plan, output), True
            kills += ending.kills
            cell.counts["kills"] += ending.kills
            cell.counts[plan.place] += ending.kills > 0
            cell.counts["both"] += ending.kills > 1
            done = not any(ending.codes)
            if ending.hung or (ending.kills == 0 and not done):
                text = "\n".join(output.read_text().splitlines()[-8:])
                cell.wrong["failures"].append(f"{name}, {plan}, {ending}: {text}")
                break
        cell.counts["runs"] += 1
        if done:
            found = compare(run, self.reference)
            for kind in ("tensors", "rows", "files"):
                cell.counts[kind] += getattr(found, kind)
            cell.wrong["differences"] += [f"{name}: {what}" for what in found.differences]
            cell.wrong["leftovers"] += [f"{name}: {what}" for what in found.leftovers]
        shutil.rmtree(run, ignore_errors=True)


def torture_cells(cells: list[Cell], store: Path, work: Path, kills: int, seed: int) -> None:
    """Kill runs of each cell until it has had at least `kills`, one cell after the other."""
    for cell in cells:
        torturer = Torturer(cell, store, work, seed)
        while (left := kills - cell.counts["kills"]) > 0 and not cell.wrong["failures"]:
            torturer.kill_one_run(min(left, torturer.dice.randint(1, MOST_KILLS)))
        lines = ["  ".join(f"{name} {value}" for name, value in cell.row().items())]
        lines += [f"  {kind}: {text}" for kind, found in cell.wrong.items() for text in found[:5]]
        print("\n".join(lines), flush=True)
        (work / f"{cell.objective}-{cell.processes}.json").write_text(json.dumps(cell.row()))


def torture(cells: list[Cell], kills: int, seed: int, jobs: int, work: Path) -> list[Row]:
    """Kill runs of all cells, several cells at once, until there were at least `kills`."""
    store = work / "store"
    write_synthetic_store(store, subjects=2, repetitions=1)
    share, fork = -(-kills // len(cells)), multiprocessing.get_context("fork")
    parts = [(cells[job::jobs], store, work, share, seed) for job in range(jobs)]
    workers = [fork.Process(target=torture_cells, args=part) for part in parts]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        sys.exit("a part of the table is missing; the reason is above")
    files = [work / f"{cell.objective}-{cell.processes}.json" for cell in cells]
    return [json.loads(file.read_text()) for file in files]


def table(record: dict[str, Any]) -> str:
    """Return a record as a Markdown table with a row of sums, and where it was made."""
    rows = record["rows"]
    names = list(rows[0])
    last = [sum(row[name] for row in rows) for name in names[2:]]
    lines = [names, ["---"] * len(names), *(list(row.values()) for row in rows), ["all", "", *last]]
    text = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
    facts = [f"{record['minutes']} minutes on {record['cores']} cores of {record['cpu']}"]
    facts += [f"torch {record['torch']}", record["date"], f"`{record['command']}`"]
    return f"{text}\n\n{wrapped(', '.join(facts))}."


def tables(folder: Path) -> str:
    """Return all that is recorded in a folder as Markdown: calls of other objectives have names."""
    records = [json.loads(file.read_text()) for file in sorted(folder.glob("torture*.json"))]
    return "\n\n".join(map(table, records))


def main() -> None:
    """Parse, torture, print, write, and exit with 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="SIGKILLs in all, at least")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; the system adds to it")
    parser.add_argument("--objectives", nargs="+", choices=list(TRAITS), default=list(TRAITS))
    parser.add_argument("--processes", nargs="+", type=int, choices=(1, 2), default=[1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="cells at once")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    parser.add_argument(
        "--document", type=Path, help="put this table, and others beside --out, between marks there"
    )
    asked = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        # The costly cells last, for an even load.
        cells = [Cell(kind, count) for count in asked.processes for kind in asked.objectives]
        rows = torture(cells, asked.kills, asked.seed, asked.jobs, Path(work))
    part = list(TRAITS) != asked.objectives
    flag = f" --objectives {' '.join(asked.objectives)}" if part else ""
    record = {
        "command": f"python -m tests.torture --kills {asked.kills} --seed {asked.seed}{flag}",
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "minutes": round((time.monotonic() - begin) / 60, 1),
        "rows": rows,
    }
    print(table(record))
    if asked.out is not None:
        asked.out.write_text(json.dumps(record, indent=1) + "\n")
    if asked.document is not None:
        shown = table(record) if asked.out is None else tables(asked.out.parent)
        text = between(asked.document.read_text(), BEGIN, END, f"\n{shown}\n")
        asked.document.write_text(text)
    wrong = sum(row[name] for row in rows for name in WRONG)
    sys.exit(f"{wrong} things are wrong" if wrong else 0)


if __name__ == "__main__":
    main()
