"""Rows of the report's sections: honest names, true peaks, no value that was not checked."""

from __future__ import annotations

import importlib
import itertools
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.report import book as books
from benchmarks.report import runs, steps, values
from benchmarks.report.book import Book, read_report
from benchmarks.report.page import page
from benchmarks.report.steps import largest_that_fits, measured_step
from benchmarks.steps import ntu_like_clips
from sjepa_fast.config.schema import replace
from tests.tiny import CPU, STEP_CONFIG, step_clips


def fits_up_to(most: int, tried: list[int]) -> Callable[[int], dict[str, Any]]:
    def measure(size: int) -> dict[str, Any]:
        tried.append(size)
        if size > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"clips": size}

    return measure


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (128, {"clips": 128}),
        (127, {"clips": 64, "note": "64 clips, as 128 do not fit"}),
        (16, {"clips": 16, "note": "16 clips, as 128 do not fit"}),
    ],
)
def test_what_does_not_fit_is_measured_on_fewer_clips_and_says_so(
    most: int, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[str] = []
    monkeypatch.setattr(steps, "forget_peaks", forgotten.append)
    tried: list[int] = []
    assert largest_that_fits(fits_up_to(most, tried), 128) == expected
    assert tried == [128, 64, 32, 16][: len(tried)] and tried[-1] == expected["clips"]
    assert len(forgotten) == len(tried) - 1, "the peak is that of the size that fits"


def test_what_never_fits_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "forget_peaks", lambda _: None)
    with pytest.raises(torch.OutOfMemoryError):
        largest_that_fits(fits_up_to(15, []), 128)


def begun(path: Path, device: str = "cpu") -> Book:
    book = Book(path, "steps", device, True, math.inf)
    book.write(status="running")
    return book


def test_a_row_says_what_its_step_fell_back_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = begun(tmp_path / "report.json")
    config = replace(STEP_CONFIG, optim={"batch_size": 4})
    assert "note" not in measured_step(book, config, step_clips(), dtype=torch.float32, rounds=3)
    real = steps.our_step

    def falling(*words: Any) -> Any:
        model, run = real(*words)
        count = itertools.count(1)

        def step(ids: torch.Tensor) -> torch.Tensor:
            if next(count) == 4:
                warnings.warn("cannot be a CUDA graph, going on without: no", stacklevel=2)
                warnings.warn("something else", stacklevel=2)
            return run(ids)

        return model, step

    monkeypatch.setattr(steps, "our_step", falling)
    row = measured_step(book, config, step_clips(), dtype=torch.float32, rounds=3)
    assert row["note"] == "cannot be a CUDA graph, going on without: no"


def test_steps_are_measured_in_the_order_of_what_is_most_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    monkeypatch.setattr(Book, "attempt", lambda self, measure, **facts: names.append(facts["row"]))
    book = begun(tmp_path / "report.json")
    book.small = False
    monkeypatch.setattr(steps, "ntu_like_clips", lambda *_, **__: step_clips())
    steps.rungs(book)
    rungs = [f"reference {rung}" for rung in "CDBA"]
    assert names[:6] == ["ours", "ours, eager", *rungs]
    rest = {"ours, compiled", "ours, float32", "reference A, fed by its loader"}
    assert {*names[6:]} >= rest


class Memory:
    """A GPU's memory: what is allocated now, and the most since the last reset."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.most = 0
        monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", self.reset)
        monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: self.most)
        monkeypatch.setattr("torch.cuda.max_memory_reserved", lambda: 2 * self.most)
        monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
        monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)

    def reset(self) -> None:
        self.most = self.now

    def use(self, mib: int) -> None:
        self.most = max(self.most, self.now + mib * 2**20)


def test_the_peak_of_a_row_is_that_of_its_whole_making(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph allocates while it is captured, and nothing when it is replayed and timed."""
    memory = Memory(monkeypatch)
    book = begun(tmp_path / "report.json", "cuda")

    def measure(mib: int) -> Callable[[], dict[str, Any]]:
        def run() -> dict[str, Any]:
            memory.use(mib)
            return books.timed(lambda: memory.use(1), "cuda", rounds=3)

        return run

    for mib in (700, 300):
        book.attempt(measure(mib), row=f"{mib}")
    rows = read_report(book.path)["sections"]["steps"]["rows"]
    assert [row["peak_mib"] for row in rows] == [700.0, 300.0]
    assert [row["reserved_mib"] for row in rows] == [1400.0, 600.0]


def test_compiled_code_of_a_row_is_dropped_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one function, eight compilations are kept; the ninth would silently run eagerly."""
    importlib.import_module("torch._dynamo")
    dropped: list[int] = []
    monkeypatch.setattr("torch.compiler.reset", lambda: dropped.append(1))
    book = begun(tmp_path / "report.json")
    for _ in range(2):
        book.attempt(lambda: {"ms": 1.0}, row="ours")
    assert dropped == [1, 1]


def test_an_op_whose_values_are_wrong_is_named_at_the_top_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"good": (1e-7, 1e-6), "bad": (1e-3, 1e-6), "nan": (math.inf, 0.05)}

    def check(op: str, impl: str, device: str) -> tuple[float, float]:
        assert (impl, device) == ("torch", "cpu")
        if op == "breaks":
            raise RuntimeError("no kernel")
        return found[op]

    planned = [(op, "torch", "cpu") for op in (*found, "breaks")]
    monkeypatch.setattr(values, "planned", lambda device: planned)
    monkeypatch.setattr(values, "check", check)
    book = Book(tmp_path / "report.json", "values", "cpu", True, math.inf)
    book.write(status="done")
    values.values(book)
    report = read_report(book.path)
    good, bad, nan, breaks = report["sections"]["values"]["rows"]
    assert good == {"op": "good", "impl": "torch", "deviation": 1e-7, "budget": 1e-6}
    assert bad["error"] == "wrong: 1.0e-03 from float64, 1.0e-06 allowed"
    assert "wrong: inf" in nan["error"] and breaks["error"] == "RuntimeError: no kernel"
    facts = {"device": "Toy", "torch": "2", "date": "2026-01-02", "command": "c", "small": True}
    text = page({**facts, "threads": 1, "cores": 1, **report})
    said = "**Wrong values on this device: bad (torch), nan (torch), breaks (torch).**"
    assert said in text and "| good: torch | 1.0e-07 | 1.0e-06 | ok |" in text


def test_the_checks_of_the_report_are_those_of_the_selfcheck() -> None:
    planned = values.planned("cpu")
    assert {device for _, _, device in planned} == {"cpu"}
    error, budget = values.check("update_center_", "torch", str(CPU))
    assert 0 <= error <= budget < 1e-5


def test_bodies_are_told_apart_as_the_trainer_does() -> None:
    single = runs.single_bodies(16, CPU)
    truth, _ = ntu_like_clips(16, CPU).split_bodies(torch.arange(16).numpy())
    assert len(single.frames_N) > 16 and single.max_bodies == 1
    for name in ("joints_RVC", "offsets_N", "frames_N", "bodies_N", "labels_N"):
        assert torch.equal(getattr(single, name), getattr(truth, name)), name


def test_presets_that_share_a_step_share_its_peak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory(monkeypatch)
    book = begun(tmp_path / "report.json", "cuda")

    def step(*_: object, **__: object) -> dict[str, Any]:
        memory.use(500)
        return {"ms": 1.0, "clips/s": 128e3, "clips": 128}

    monkeypatch.setattr(runs, "fitting_step", step)
    monkeypatch.setattr(runs, "ntu_like_clips", lambda *_, **__: step_clips())
    runs.projections(book)
    rows = read_report(book.path)["sections"]["steps"]["rows"]
    assert len(rows) > 12 and {row["peak_mib"] for row in rows} == {500.0}
