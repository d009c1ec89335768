"""Jobs in processes that live long: order, failures, deaths, and the end of the time."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from benchmarks.executor import Ended, Job, run_jobs

# A module with the interface of the package's commands: `main` gets arguments and exits.
FAKE = """
import os, signal, sys, time
from pathlib import Path

def main(argv):
    kind, file, *more = argv
    print("begun", os.getpid(), flush=True)
    if kind == "fail":
        print("the reason", file=sys.stderr)
        sys.exit(2)
    if kind == "raise":
        raise RuntimeError("a surprise")
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "nothing":
        sys.exit(0)
    if kind == "save":
        stopped = []
        before = signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
        while not stopped:
            time.sleep(0.01)
        signal.signal(signal.SIGTERM, before)
        Path(file + ".saved").touch()
        sys.exit(143)
    time.sleep(float(more[0]) if more else 0)
    Path(file).write_text(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']}")
    sys.exit(0)
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "fake_command.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def job(work: Path, name: str, kind: str = "good", *more: str, needs: tuple[str, ...] = ()) -> Job:
    file = work / f"{name}.json"
    return Job(name, "fake_command", (kind, str(file), *more), file, needs)


def ended(outcomes: list[Ended]) -> dict[str, tuple[str, str]]:
    return {outcome.name: (outcome.state, outcome.line) for outcome in outcomes}


def test_failures_are_recorded_and_stop_only_what_needs_them(work: Path) -> None:
    jobs = [
        job(work, "fails", "fail"),
        job(work, "raises", "raise"),
        job(work, "dies", "die"),
        job(work, "nothing", "nothing"),
        job(work, "after-fails", needs=("fails",)),
        job(work, "first"),
        job(work, "after-first", needs=("first", "not among these")),
        *(job(work, f"more-{i}") for i in range(4)),
    ]
    found = ended(run_jobs(jobs, work, 2))
    assert found["fails"] == ("failed", "the reason")
    assert found["raises"] == ("failed", "RuntimeError: a surprise")
    assert found["dies"] == ("failed", "its process ended with -9")
    assert found["nothing"] == ("failed", f"it did not write {work}/nothing.json")
    assert found["after-fails"] == ("left", "needs fails")
    good = ["first", "after-first", *(f"more-{i}" for i in range(4))]
    assert all(found[name] == ("done", "") for name in good)
    made = [(work / f"{name}.json").read_text().split() for name in good]
    assert {threads for _, threads in made} == {"1"}
    assert len({pid for pid, _ in made}) <= 3, "processes are used again"
    assert "begun" in (work / "logs" / "first.log").read_text()
    lines = map(json.loads, (work / "jobs.jsonl").read_text().splitlines())
    assert {line["name"]: line["state"] for line in lines} == {
        name: state for name, (state, _) in found.items() if name != "after-fails"
    }


def test_what_is_there_is_not_made_again_and_failures_are_tried_again(work: Path) -> None:
    first = [job(work, "a"), job(work, "b", "fail"), job(work, "c", needs=("a",))]
    run_jobs(first, work, 1)
    kept = (work / "a.json").read_text()
    again = run_jobs([job(work, "a", "fail"), job(work, "b"), first[2]], work, 1)
    assert ended(again) == {"b": ("done", "")}
    assert (work / "a.json").read_text() == kept


def test_the_first_that_can_begin_begins_first(work: Path) -> None:
    jobs = [job(work, "b", needs=("a",)), job(work, "a"), job(work, "c"), job(work, "d")]
    assert [end.name for end in run_jobs(jobs, work, 1)] == ["a", "b", "c", "d"]


def test_at_the_end_of_the_time_nothing_begins_and_what_runs_is_stopped(work: Path) -> None:
    jobs = [
        job(work, "quick"),
        job(work, "saves", "save"),
        job(work, "slow", "good", "600"),
        job(work, "ends", "good", "2.5"),
        job(work, "late"),
    ]
    began = time.monotonic()
    # The time counts from the call, and the processes' first imports take some of it.
    run_jobs(jobs[:1], work, 1)
    found = ended(run_jobs(jobs[1:4] + [job(work, f"late-{i}") for i in range(2)], work, 3,
                           minutes=1.5 / 60, grace=5))  # fmt: skip
    assert time.monotonic() - began < 60
    assert found == {
        "saves": ("left", "stopped"),
        "slow": ("left", "stopped"),
        "ends": ("done", ""),
        "late-0": ("left", "time was up"),
        "late-1": ("left", "time was up"),
    }
    assert (work / "saves.json.saved").exists()
    assert not (work / "slow.json").exists()
