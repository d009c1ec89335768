"""`benchmarks/gpu_report.py` to its end, on a large and on a small card: all of it fits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.null_gpu.build import ROOT, build, environment

# Far more than is needed: a slow machine must not be what ends a section.
MINUTES = 120
# Sections whose rows differ by the memory of the card.
BY_MEMORY = ("steps", "bodies and masks", "growth", "hours")


def report(folder: Path, gib: float, *sections: str) -> dict[str, Any]:
    """Run the report in processes on the null GPU and return what it wrote."""
    only = ["--only", *sections] if sections else []
    words = ["benchmarks/gpu_report.py", "--minutes", str(MINUTES), "--out", str(folder), *only]
    done = subprocess.run(
        [sys.executable, *words],
        env=environment(build(), gib=gib, zeros=True) | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60 * MINUTES,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def errors(found: dict[str, Any]) -> Iterator[str]:
    """Every section that did not end well and every row without a figure, in one line each."""
    for name, section in found["sections"].items():
        if section.get("status") != "done":
            yield f"{name}: {section.get('status')}: {section.get('error')}"
        for row in section["rows"]:
            if "error" in row:
                yield f"{name}: {row}"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return report(tmp_path_factory.mktemp("report") / "large", 79.2)


def test_all_of_the_report_is_measured_on_a_card_of_80_gb(large: dict[str, Any]) -> None:
    assert [line for line in errors(large) if "out of memory" in line] == []
    assert list(errors(large)) == []
