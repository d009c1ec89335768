"""`python -m tests.guards`: takes each guard away in turn, and wants its tests to fail.

Works on a copy of the tree. Prints a line for each guard; exit code 1 if a guard's test passes
without it, or cannot be run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.tables import between
from tests.guards.table import GUARDS, Guard
from tests.tiny import ROOT, environment

BEGIN, END = "<!-- guards begin -->", "<!-- guards end -->"
# What a test that is stopped by `pytest-timeout` fails after: without a guard some wait for ever.
SECONDS = 120


def copy_tree(to: Path) -> None:
    """Copy the project with its built libraries, without history, environments and runs."""
    left = shutil.ignore_patterns(".*", "__pycache__", "build", "runs", "stores")
    shutil.copytree(ROOT, to, ignore=left, dirs_exist_ok=True)


def run_tests(tree: Path, tests: tuple[str, ...]) -> Counter[tuple[str, str]]:
    """Run tests of a tree; count (test of `tests`, outcome): `error` is what could not run."""
    flags = ("-q", "-p", "no:cacheprovider", "-rA", "--tb=no", f"--timeout={SECONDS}")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *flags, *tests],
        cwd=tree,
        env={**environment(), "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'kernels'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    found: Counter[tuple[str, str]] = Counter()
    for outcome, ran in re.findall(r"^(PASSED|FAILED|ERROR) (\S.*)$", done.stdout, re.MULTILINE):
        for test in tests:
            if ran.startswith(test):
                found[test, outcome.lower()] += 1
    return found


def without(guard: Guard, tree: Path) -> list[dict[str, Any]]:
    """Run a guard's tests in a tree that lacks it; the tree is whole again afterwards."""
    path = tree / guard.file
    whole = path.read_text()
    assert whole.count(guard.guard) == 1, f"{guard.file} does not have this once: {guard.guard}"
    path.write_text(whole.replace(guard.guard, guard.without))
    try:
        found = run_tests(tree, guard.tests)
    finally:
        path.write_text(whole)
    return [
        {"test": test, **{kind: found[test, kind] for kind in ("failed", "passed", "error")}}
        for test in guard.tests
    ]


def holds(row: dict[str, Any]) -> bool:
    """Whether each test of a row failed, and by itself."""
    return all(test["failed"] > 0 and test["error"] == 0 for test in row["tests"])


def table(record: dict[str, Any]) -> str:
    """Return a record as a Markdown table."""
    lines = ["| seen | guard in | fail without it |", "| --- | --- | --- |"]
    for row in record["rows"]:
        cells = [
            f"`{test['test']}` ({test['failed']} of {test['failed'] + test['passed']})"
            for test in row["tests"]
        ]
        lines.append(f"| {row['seen']} | `{row['file']}` | {', '.join(cells)} |")
    return "\n".join(lines) + f"\n\n`{record['command']}`, {record['date']}."


def main() -> None:
    """Parse, take guards away, print, write, and exit with 1 if a test still passes."""
    parser = argparse.ArgumentParser(prog="python -m tests.guards", description=__doc__)
    parser.add_argument("--only", default="", help="guards whose description has this")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    parser.add_argument("--document", type=Path, help="put the table between its marks there")
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as work:
        tree = Path(work)
        copy_tree(tree)
        for guard in (guard for guard in GUARDS if asked.only in guard.seen):
            row = {"seen": guard.seen, "file": guard.file, "tests": without(guard, tree)}
            rows.append(row)
            print("held by" if holds(row) else "NOT HELD by", json.dumps(row), flush=True)
    record = {
        "command": "python -m tests.guards",
        "date": datetime.date.today().isoformat(),
        "rows": rows,
    }
    if asked.out is not None:
        asked.out.write_text(json.dumps(record, indent=1) + "\n")
    if asked.document is not None:
        text = between(asked.document.read_text(), BEGIN, END, f"\n{table(record)}\n")
        asked.document.write_text(text)
    wrong = [row["seen"] for row in rows if not holds(row)]
    sys.exit(f"{len(wrong)} guards are not held: {', '.join(wrong)}" if wrong else 0)


if __name__ == "__main__":
    main()
