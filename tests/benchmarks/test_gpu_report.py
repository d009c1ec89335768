"""The speed report: it runs on a bare machine, survives what fails in it, and its page is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_report
from benchmarks.conftest import pytest_runtest_setup
from benchmarks.report.page import DATASHEETS, datasheet, page
from benchmarks.report.plots import draw
from tests.tiny import ROOT, Done, environment, run_python

# What a machine with torch, Triton, NumPy and pytest-benchmark alone does not have.
ABSENT = "tyro cattrs yaml rich safetensors tensorboard matplotlib pytest_timeout"
BARE = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT.split()}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def run(script: Path, arguments: list[str], extra: Path) -> Done:
    env = {**environment(extra), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": ""}
    return run_python(script, *arguments, env=env, timeout=500)


@pytest.mark.slow
def test_the_small_report_is_complete_on_a_bare_machine(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BARE)
    out = tmp_path / "out"
    arguments = ["--small", "--minutes", "6", "--out", str(out)]
    done = run(ROOT / "benchmarks" / "gpu_report.py", arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["small"] and report["torch"] and report["device"]
    assert list(report["sections"]) == [name for name, *_ in gpu_report.SECTIONS]
    for name, entry in report["sections"].items():
        assert entry["status"] == "done", (name, entry)
        good = [row for row in entry["rows"] if not isinstance(row.get("error"), str)]
        assert good, (name, entry["rows"])
    steps = {row["row"]: row for row in report["sections"]["steps"]["rows"]}
    measured = {name: row for name, row in steps.items() if "ms" in row}
    assert measured.keys() >= {"ours", "reference A", "reference B", "reference C"}
    losses = [row["first_loss"] for row in measured.values()]
    assert losses == pytest.approx([losses[0]] * len(losses), rel=0.02)
    for row in measured.values():
        assert row["clips/s"] == pytest.approx(1000 * row["clips"] / row["ms"])
        assert row["TFLOP/s"] == pytest.approx(1000 * row["TFLOP"] / row["ms"])
    text = (out / "report.md").read_text()
    assert text == page(report)
    assert "no figure here is a claim" in text and "Matplotlib is not installed" in text
    assert not list(out.glob("*.png"))


FAILING = """
import os, sys, time
from benchmarks import gpu_report
from benchmarks.conftest import pytest_runtest_setup

def good(book):
    book.row(what="copy", ms=1.0)

def raises(book):
    book.row(what="copy", ms=2.0)
    raise ValueError("bad shape")

def dies(book):
    book.row(row="ours", ms=3.0)
    os._exit(7)

def hangs(book):
    book.row(row="both bodies", ms=4.0)
    time.sleep(600)

def fails_once(book):
    def broken():
        raise RuntimeError("no kernel")
    book.attempt(broken, preset="first")
    book.attempt(lambda: {"ms": 5.0}, preset="second")
    book.attempt(lambda: {"ms": 5.0}, needs=1e9, preset="third")

gpu_report.SECTIONS = tuple(
    (name, f"sections:{function}", 0.5, 0.5 if function == "hangs" else 60.0)
    for name, function in [
        ("ceilings", "raises"), ("steps", "dies"), ("bodies and masks", "hangs"),
        ("hours", "fails_once"), ("attention", "good"),
    ]
)
gpu_report.GRACE = 1.0
gpu_report.__file__ = __file__

if __name__ == "__main__":
    sys.exit(gpu_report.main())
"""


def test_sections_that_raise_die_or_hang_leave_their_rows_and_the_others(tmp_path: Path) -> None:
    script = tmp_path / "sections.py"
    script.write_text(FAILING)
    done = run(script, ["--small", "--minutes", "5", "--out", str(tmp_path / "out")], tmp_path)
    assert done.returncode == 0, done.stderr
    sections = json.loads((tmp_path / "out" / "report.json").read_text())["sections"]
    status = {name: entry["status"] for name, entry in sections.items()}
    assert status == {
        "ceilings": "failed",
        "steps": "failed",
        "bodies and masks": "out of time",
        "hours": "done",
        "attention": "done",
    }
    assert "bad shape" in sections["ceilings"]["error"]
    assert "code 7" in sections["steps"]["error"]
    assert [entry["rows"][0]["ms"] for entry in list(sections.values())[:3]] == [2.0, 3.0, 4.0]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "No table: KeyError('shape')" in text and "| copy | 2.00 |" in text
    errors = [row.get("error") for row in sections["hours"]["rows"]]
    assert errors == ["RuntimeError: no kernel", None, "left out: no time"]


def example() -> dict[str, Any]:
    step = {"ms": 40.0, "ms_min": 39.0, "clips/s": 3200.0, "TFLOP/s": 250.0, "peak_mib": 2048.0}
    sections: dict[str, Any] = {
        "ceilings": {"status": "done", "rows": [{"what": "matmul bfloat16, 8192", "ms": 1.4}]},
        "steps": {
            "status": "failed",
            "error": "the device answers no more",
            "rows": [
                {"row": "ours, compiled", **step},
                {"row": "reference C", **step, "ms": 60.0},
                {"row": "reference A", "error": "out of memory"},
            ],
        },
        "growth": {"status": "out of time", "rows": []},
    }
    sections["ceilings"]["rows"][0]["TFLOP/s"] = 750.0
    facts = {"device": "NVIDIA H200", "torch": "2.11", "date": "2026-01-02", "command": "c"}
    return {**facts, "small": False, "cores": 16, "threads": 16, "sections": sections}


def test_the_page_has_mfu_by_both_peaks_ratios_and_what_went_wrong() -> None:
    text = page(example())
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    ours = next(cells for cells in lines if cells[:1] == ["ours, compiled"])
    # 250 of 750 TFLOP/s measured here, and of the 989 that the maker states.
    assert ours[1:9] == ["40.00", "39.00", "3200.0", "250.000", "33.3 %", "25.3 %", "2048", "1.00x"]
    other = next(cells for cells in lines if cells[:1] == ["reference C"])
    assert other[8] == "1.50x"
    assert next(c for c in lines if c[:1] == ["reference A"])[1] == "out of memory"
    assert "**failed** the device answers no more" in text and "**out of time**" in text


def test_datasheet_names_are_those_that_torch_gives() -> None:
    known = {
        "NVIDIA H100 80GB HBM3": 989.0,
        "NVIDIA H100 PCIe": 756.0,
        "NVIDIA A100-SXM4-80GB": 312.0,
        "NVIDIA B200": 2250.0,
    }
    for name, flops in known.items():
        found = datasheet(name)
        assert found is not None and found[1] == flops, name
    assert datasheet("AMD EPYC") is None and len(DATASHEETS) == 7


def test_pictures_are_drawn_of_what_there_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = example()
    assert draw(report, tmp_path) == ["steps.png"]
    report["sections"]["long run"] = {
        "rows": [{"row": "ours", "steps": 200, "chunks_ms": [2.0, 3.0]}]
    }
    report["sections"]["growth"]["rows"] = [
        {"what": what, "value": value, "ms": 1.0 * value}
        for what in ("clips", "frames")
        for value in (1, 2)
    ]
    assert draw(report, tmp_path) == ["steps.png", "growth.png", "long_run.png"]
    assert all((tmp_path / name).stat().st_size > 5000 for name in draw(report, tmp_path))


def test_a_section_names_a_function_that_exists() -> None:
    for _, place, on_gpu, small in gpu_report.SECTIONS:
        module, function = place.split(":")
        text = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        assert f"def {function}(book: Book)" in text
        assert on_gpu > 0 and small > 0
    assert sum(small for *_, small in gpu_report.SECTIONS) <= 180


def test_a_benchmark_that_would_begin_too_late_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHMARK_DEADLINE", "1e12")
    pytest_runtest_setup()
    monkeypatch.setenv("BENCHMARK_DEADLINE", "1.0")
    with pytest.raises(pytest.skip.Exception, match="no time left"):
        pytest_runtest_setup()
