"""The op table of the report: rows of the pytest benchmarks, as many as time allows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.report.book import Book
from benchmarks.tables import ROOT, condense

# Files, and their shares of the section's time; the next files get the time that one leaves.
FILES = {
    "bench_kernels": 0.18,
    "bench_losses": 0.24,
    "bench_regularizers": 0.08,
    "bench_augment": 0.12,
    "bench_masks": 0.13,
    "bench_blocks": 0.25,
}
# The project's own settings name plugins that a bare machine does not have.
SETTINGS = "[pytest]\npython_files = bench_*.py\naddopts = --import-mode=importlib\n"


def ops(book: Book) -> None:
    """Run the pytest benchmarks of the ops in a process of their own and take over their rows.

    Each row checks its values first: one whose values are wrong fails, and its row here is the
    reason instead of a time. What has not begun when a file's time is up is skipped
    (`BENCHMARK_DEADLINE`, see benchmarks/conftest.py, where ours come first). A file's rows are
    lost only if its process dies.
    """
    chosen = ["-k", "ema and ours"] if book.small else []
    shares = list(FILES.items())[: 1 if book.small else None]
    for i, (name, share) in enumerate(shares):
        if book.left() < 10:
            book.row(file=name, error="left out: no time")
            continue
        budget = book.left() * share / sum(other for _, other in shares[i:])
        with tempfile.TemporaryDirectory() as folder:
            ini, raw, told = (Path(folder) / x for x in ("pytest.ini", "raw.json", "told.xml"))
            ini.write_text(SETTINGS)
            command = [
                *(sys.executable, "-m", "pytest", str(ROOT / "benchmarks" / f"{name}.py")),
                *("-c", str(ini), "--rootdir", str(ROOT), "--confcutdir", str(ROOT)),
                *("-q", "-p", "no:cacheprovider", f"--junitxml={told}"),
                *("--benchmark-only", f"--benchmark-json={raw}"),
                *chosen,
            ]
            paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
            environment = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                "BENCHMARK_DEADLINE": str(time.time() + budget - 3),
            }
            try:
                done = subprocess.run(
                    command, cwd=folder, env=environment, capture_output=True, text=True,
                    timeout=budget + 15, check=False,
                )  # fmt: skip
                output, code = done.stdout, done.returncode
            except subprocess.TimeoutExpired:
                output, code = "out of time", -1
            if raw.exists() and raw.stat().st_size:
                for row in condense(json.loads(raw.read_text()))["rows"]:
                    book.row(file=name, **row)
            for row in failures(told):
                book.row(file=name, **row)
            if code not in (0, 1):
                last = output.strip().splitlines()[-1:]
                book.row(file=name, error=f"pytest ended with code {code}: {' '.join(last)}"[:300])


def failures(told: Path) -> list[dict[str, str]]:
    """Return the rows that failed, with the reason, and how many there was no time for."""
    if not told.exists():
        return []
    rows, skipped = [], 0
    for case in ElementTree.parse(told).iter("testcase"):
        for outcome in case:
            message = (outcome.get("message") or "").strip().partition("\n")[0]
            if outcome.tag in ("failure", "error"):
                rows.append({"name": case.get("name", ""), "error": message[:300]})
            elif outcome.tag == "skipped" and "no time left" in message:
                skipped += 1
    if skipped:
        rows.append({"name": f"{skipped} more rows", "error": "left out: no time"})
    return rows
