"""`benchmarks/gpu_report.py` to its end, on a large and on a small card: all of it fits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import tune_attention
from benchmarks.report.devices import MOST_WRONG
from benchmarks.report.sections import SECTIONS
from tests.null_gpu.build import ROOT, build, environment

# Far more than is needed: a slow machine must not be what ends a section.
MINUTES = 60.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * 60 * MINUTES)]
# Its rows are tests of pytest's, run by themselves: here they would take all the time there is.
OPERATIONS = "operations"
# Sections whose rows differ by the memory of the card.
BY_MEMORY = ("steps", "bodies and masks", "growth", "hours")
# How rows begin whose values were compared with the truth: nothing is computed here.
WRONG = ("wrong: ", "AssertionError", "assert ")
# What the card refuses.
REFUSED = ("out of memory", "captur", "invalid argument", "configuration")


def report(folder: Path, gib: float, sections: list[str]) -> dict[str, Any]:
    """Run the report in processes on the null GPU and return the sections that it wrote."""
    words = ["benchmarks/gpu_report.py", "--minutes", str(MINUTES), "--out", str(folder)]
    done = subprocess.run(
        [sys.executable, *words, "--only", *sections],
        env=environment(build(), gib=gib) | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60 * MINUTES,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())["sections"]
    assert list(found) == sections
    return found


def errors(found: dict[str, Any]) -> Iterator[str]:
    """Every section that did not end well and every row without a figure, in one line each."""
    for name, section in found.items():
        if section.get("status") != "done":
            yield f"{name}: {section.get('status')}: {section.get('error')}"
        for row in section["rows"]:
            # How far values are from the truth, as a number or in words, says nothing here.
            error = row.get("error")
            if isinstance(error, str) and not error.startswith(WRONG):
                yield f"{name}: {row}"


def refusals(lines: list[str]) -> list[str]:
    return [line for line in lines if any(word in line for word in REFUSED)]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All sections but the operations on a card of 80 GB."""
    sections = [section.name for section in SECTIONS if section.name != OPERATIONS]
    return report(tmp_path_factory.mktemp("report"), 79.2, sections)


def test_all_sections_are_measured_on_a_card_of_80_gb(large: dict[str, Any]) -> None:
    missing = list(errors(large))
    assert refusals(missing) == []
    # Values that nobody computed can be read as sizes there; and not all backends are installed.
    assert [x for x in missing if not x.startswith(("values: {", "attention: {"))] == []


def test_rows_of_operations_are_launched_and_captured() -> None:
    files = [f"benchmarks/bench_{name}.py" for name in ("kernels", "blocks", "augment", "masks")]
    quick = ["--benchmark-only", "--benchmark-min-rounds=1", "--benchmark-max-time=0.001"]
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *quick, "-k", "ours and not compiled"]
    unreal = {"BENCHMARK_VALUES_UNREAL": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words, *files],
        env=environment(build(), zeros=True) | unreal,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "call" in done.stdout and "graph" in done.stdout


def test_on_a_card_of_24_gb_steps_are_made_smaller_until_they_fit(
    large: dict[str, Any], tmp_path: Path
) -> None:
    small = report(tmp_path, 24.0, list(BY_MEMORY))
    # So many clips in one step are asked for to see where a card ends.
    many = [row for row in small["growth"]["rows"] if row["what"] == "clips" and row["value"] > 256]
    asked = [f"growth: {row}" for row in many]
    assert [line for line in errors(small) if line not in asked] == []
    for name in BY_MEMORY:
        rows = small[name]["rows"]
        assert len(rows) == len(large[name]["rows"])
        assert all(row["peak_mib"] < 24 * 1024 for row in rows if "peak_mib" in row)
    assert any(made_smaller(row) for row in small["steps"]["rows"])
    assert not any(made_smaller(row) for section in large.values() for row in section["rows"])


def made_smaller(row: dict[str, Any]) -> bool:
    return "do not fit" in row.get("note", "")


def test_every_kind_of_tile_is_compiled_and_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One tile of each; there are no values here, so whether they are right is not asked."""
    few = {kind: tiles[:1] for kind, tiles in tune_attention.CANDIDATES.items()}
    monkeypatch.setattr(tune_attention, "CANDIDATES", few)
    monkeypatch.setitem(MOST_WRONG, torch.bfloat16, float("inf"))
    out = tmp_path / "tiles.json"
    tune_attention.main(["--out", str(out), "--seconds", "300", "--processes", "1"])
    rows = json.loads(out.read_text())["rows"]
    assert [row["kernel"] for row in rows] == list(few)
    assert not refusals([row.get("error", "") for row in rows])
