"""The fuzzer tells apart what may happen to an input."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz import planted
from tests.fuzz.runner import Tally, Worker
from tests.fuzz.target import PLANTED, all_targets, modules


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(limit=1) as started:
        yield started


@pytest.mark.parametrize("name", [target.name for target in planted.TARGETS[:-1]])
def test_every_outcome_is_told_apart(worker: Worker, name: str) -> None:
    """Two inputs each: after a death the next worker goes on behind it."""
    count = 1 if name == "HANG" else 2
    tally = worker.run(name, PLANTED, 0, range(count))
    assert dict(tally.counts) == {name.split()[0]: count}, tally.found
    assert len(tally.found) == (count if name.split()[0].isupper() else 0)


def test_a_target_that_cannot_run_here_says_why(worker: Worker) -> None:
    tally = worker.run("unavailable", PLANTED, 0, range(5))
    assert (tally.unavailable, tally.inputs) == ("no compiler", 0)


def test_an_input_depends_on_seed_and_number_alone(worker: Worker) -> None:
    """Input 7 is the same after six others and by itself."""
    details = {}
    for start in (0, 7):
        job = {"module": PLANTED, "target": "refused", "seed": 3, "seconds": 60}
        job |= {"start": start, "stop": 8, "limit": 1}
        found = [detail for _, _, detail, _ in worker.answers(job, Tally("refused"))]
        details[start] = found[-1]
        assert len(set(found)) == len(found)
    assert details[0] == details[7]
    assert random.Random("refused 3 7").randbytes(4).hex() in details[7]


def test_every_module_with_targets_is_found() -> None:
    files = {path.stem for path in Path(planted.__file__).parent.glob("*.py")}
    assert set(modules()) <= files
    assert PLANTED not in modules()
    assert all(name for name in all_targets())
