"""From result files to rows: one for each cell, with all that its score depends on."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.executor import Job
from benchmarks.features.plan import SETS, Cell, Plan, Set
from sjepa_fast.data.store import Store, open_store
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.metrics import standard_error
from sjepa_fast.opening import read_json
from sjepa_fast.runtime.files import write_json

Row = dict[str, Any]
# Of a result file.
KEPT = ("train_clips", "test_clips", "features", "device", "dtype", "threads", "torch")
# Of a run's `env.json`.
MACHINE = ("sjepa_fast", "git", "python", "platform", "gpu")


def key_of(row: Row) -> tuple[str, str, str, str, int]:
    """Name a row as its cell is named."""
    return row["set"], row["split"], row["row"], row["column"], row["seed"]


def command_of(job: Job, work: Path) -> str:
    """Return a job's command, with WORK and DATA in place of the machine's own paths."""
    words = [word.replace(str(work), "WORK") for word in job.words]
    return shlex.join([job.module, *words])


def _commands(cell: Cell, plan: Plan, work: Path) -> list[str]:
    # The preparations have the machine's folder of raw data, and the stores their fingerprints.
    found: list[Job] = []

    def add(job: Job) -> None:
        for need in job.needs:
            if not need.startswith("prepare-"):
                add(plan.before[need])
        found.append(job)

    add(cell.job)
    return [command_of(job, work) for job in found]


def collect(plan: Plan, work: Path, sets: dict[str, Set] = SETS) -> dict[str, Any]:
    """Return rows, recipes by name, stores and the machine of what a work folder has.

    A result that is damaged, of another store than the one that is there, or whose headline is not
    what its predictions give is left out, and named on stderr. Raises InputError if another command
    has made a result, or a store is damaged.
    """
    rows, recipes, fingerprints = [], {}, {}
    machine: dict[str, Any] = {}
    stores: dict[str, Store] = {}
    times = check_commands(plan, work)
    for cell in plan.cells:
        if not cell.job.file.exists():
            continue
        if cell.store not in stores:
            stores[cell.store] = open_store(work / "stores" / cell.store)
            fingerprints[cell.store] = stores[cell.store].fingerprint
        try:
            result = read_json("result", cell.job.file, 2**26)
            scores = _scores(cell, result, stores[cell.store], sets[cell.store])
        except InputError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        recipe = hashlib.sha256(json.dumps(result["recipe"], sort_keys=True).encode()).hexdigest()
        recipes[recipe[:12]] = result["recipe"]
        ran = [times[name] for name in [*cell.job.needs, cell.job.name] if name in times]
        rows.append(
            {
                **dict(zip(("set", "split", "row", "column", "seed"), cell.key, strict=True)),
                **scores,
                **{key: result[key] for key in KEPT},
                "recipe": recipe[:12],
                "commands": _commands(cell, plan, work),
                "seconds": [round(seconds, 1) for seconds in ran],
            }
        )
        environment = cell.job.file.parent.parent / "env.json"
        if not machine and environment.exists():
            machine = {key: read_json("run", environment)[key] for key in MACHINE}
    return {"machine": machine, "stores": fingerprints, "recipes": recipes, "rows": rows}


def check_commands(plan: Plan, work: Path) -> dict[str, float]:
    """Compare what the work folder's results were made by with the plan; return seconds by job.

    Raises InputError if a result is there that another command has made.
    """
    path = work / "jobs.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {line["name"]: line for line in lines if line["state"] == "done"}
    for job in [*plan.before.values(), *(cell.job for cell in plan.cells)]:
        made = done.get(job.name)
        if made and job.file.exists() and made["words"] != list(job.words):
            value = f"{job.file} was made by other flags: {shlex.join(made['words'])}"
            raise InputError("work", value, "give those flags again, or another --work")
    return {name: line["seconds"] for name, line in done.items()}


def _scores(cell: Cell, result: Row, store: Store, kind: Set) -> Row:
    """Return the headline, and that on the set's part of the test clips, with standard errors."""
    if result["store_fingerprint"] != store.fingerprint:
        fix = "prepare the store that it was made from, or delete it"
        raise InputError("result", f"{cell.job.file} is of other clips than {store.root}", fix)
    test = store.ids(cell.split, "test")
    labels = np.asarray(store.labels)
    right_SQ = np.asarray(result["predicted"]) == labels[test]
    top1 = 100 * float(right_SQ.mean())
    if abs(top1 - result["headline"]) > 1e-3:
        value = f"{cell.job.file} says {result['headline']}, its predictions {top1}"
        raise InputError("result", value, "delete it and run again")
    scores: Row = {"top1": top1, "standard_error": result["standard_error"]}
    if kind.part:
        same = np.array_equal(store.ids(cell.split, "train"), store.ids(kind.part, "train"))
        inside = np.isin(test, store.ids(kind.part, "test"))
        if not same or inside.sum() != len(store.ids(kind.part, "test")):
            fix = "prepare the store anew"
            raise InputError("store", f"{kind.part} is no part of {cell.split}", fix)
        top1 = 100 * float(right_SQ[:, inside].mean())
        count = int(inside.sum())
        scores["part"] = {
            "split": kind.part,
            "top1": top1,
            "standard_error": standard_error(top1, count),
            "test_clips": count,
        }
    return scores


def known(path: Path, plan: Plan, work: Path) -> dict[str, Any]:
    """Read an earlier collection, with those of its rows whose commands are still the plan's."""
    if not path.exists():
        return {"machine": {}, "stores": {}, "recipes": {}, "rows": []}
    content = read_json("results", path, 2**28)
    commands = {cell.key: _commands(cell, plan, work) for cell in plan.cells}
    rows = content["rows"]
    content["rows"] = [
        row for row in rows if row["commands"] == commands.get(key_of(row), row["commands"])
    ]
    if dropped := len(rows) - len(content["rows"]):
        print(f"{dropped} rows of {path} are of other commands, and left out", file=sys.stderr)
    return content


def merge(before: dict[str, Any], new: dict[str, Any], flags: str = "") -> dict[str, Any]:
    """Add a work folder's rows to those of an earlier collection, in place of the same cells'.

    `flags` are those of the command that change what it runs.

    Raises InputError if they are of different stores.
    """
    for store, fingerprint in new["stores"].items():
        if before["stores"].get(store, fingerprint) != fingerprint:
            fix = "collect into another folder"
            raise InputError("results", f"the earlier rows are of another {store}", fix)
    rows = {key_of(row): row for row in [*before["rows"], *new["rows"]]}
    recipes = before["recipes"] | new["recipes"]
    used = {row["recipe"] for row in rows.values()}
    return {
        "command": f"python -m benchmarks.features run --data DATA{flags}",
        "machine": new["machine"] or before["machine"],
        "stores": before["stores"] | new["stores"],
        "recipes": {name: recipes[name] for name in sorted(used)},
        "rows": [rows[key] for key in sorted(rows)],
    }


def write_rows(path: Path, content: dict[str, Any]) -> None:
    """Write a collection as JSON, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)
