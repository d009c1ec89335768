"""Score every method on every small set, and write rows and tables.

python -m benchmarks.features run --data DATA --out FOLDER    do what is left, collect it
python -m benchmarks.features list --data DATA                the commands that are left
python -m benchmarks.features collect --out FOLDER            only collect what the work folder has
python -m benchmarks.features tables                          rewrite docs/results.md

FOLDER is that of a machine's results; the rows that its features.json has are not made again, nor
is what the work folder has, so that an interrupted call can be repeated, also on another machine of
the same kind with nothing but that file.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from benchmarks.executor import run_jobs
from benchmarks.features import page, plan, rows
from sjepa_fast.errors import InputError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT = ROOT / "docs" / "results.md"


def chosen(table: dict[str, Any], names: list[str] | None) -> dict[str, Any]:
    """Return the part of a table that was asked for, in the order of the names; None: all."""
    return table if names is None else {name: table[name] for name in names}


def parser() -> argparse.ArgumentParser:
    """Return the flags."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("action", choices=("run", "list", "collect", "tables"))
    found.add_argument("--data", type=Path, default=Path("data"), help="folder that holds the sets")
    found.add_argument("--work", type=Path, default=Path("runs/features"), help="folder of runs")
    found.add_argument("--out", type=Path, help="folder of features.json; default: WORK")
    found.add_argument("--jobs", type=int, default=2, help="processes at a time")
    found.add_argument("--minutes", type=float, help="begin nothing after so long")
    found.add_argument("--grace", type=float, default=30.0, help="seconds that what runs then has")
    found.add_argument("--sets", nargs="+", choices=plan.SETS)
    found.add_argument("--methods", nargs="+", choices=plan.METHODS)
    found.add_argument("--columns", nargs="+", choices=plan.COLUMNS)
    found.add_argument("--seeds", type=int, nargs="+", default=list(plan.SEEDS))
    found.add_argument("--train", default="", help="further flags of every pre-training")
    found.add_argument("--frozen", default="", help="the same of every score of frozen features")
    found.add_argument("--tuning", default=plan.STRONG, help="flags of what trains on labels")
    return found


def main(argv: list[str] | None = None) -> int:
    """Do what was asked; 1 if a job failed."""
    asked = parser().parse_args(argv)
    if asked.action == "tables":
        DOCUMENT.write_text(page.with_tables(DOCUMENT.read_text(), RESULTS))
        return 0
    sets, methods = chosen(plan.SETS, asked.sets), chosen(plan.METHODS, asked.methods)
    wanted = plan.make_plan(
        asked.data,
        asked.work,
        sets=sets,
        methods=methods,
        columns=chosen(plan.COLUMNS, asked.columns),
        seeds=tuple(asked.seeds),
        more=asked.train,
        frozen=asked.frozen,
        tuning=asked.tuning,
    )
    file = (asked.out or asked.work) / "features.json"
    before = rows.known(file, wanted, asked.work)
    jobs = wanted.jobs({rows.key_of(row) for row in before["rows"]})
    if asked.action == "list":
        for job in jobs:
            if not job.file.exists():
                print(shlex.join(["python", "-m", job.module, *job.words]))
        return 0
    failed = False
    if asked.action == "run":
        # Before any time is spent.
        rows.check_commands(wanted, asked.work)
        ended = run_jobs(jobs, asked.work, asked.jobs, minutes=asked.minutes, grace=asked.grace)
        failed = any(outcome.state == "failed" for outcome in ended)
    flags = "" if asked.tuning == plan.STRONG else f" --tuning {shlex.quote(asked.tuning)}"
    content = rows.merge(before, rows.collect(wanted, asked.work), flags)
    rows.write_rows(file, content)
    print(f"{len(content['rows'])} rows -> {file}")
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
