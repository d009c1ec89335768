"""A minute of fuzzing, the inputs that were defects, and planted bugs that must be seen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz import cpp_parser
from tests.fuzz.runner import Worker
from tests.fuzz.target import Crashed, Unavailable, all_targets

TARGETS = all_targets()
SECONDS = 60
FOUND = Path(__file__).with_name("found.json")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as started:
        yield started


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_is_a_defect(worker: Worker, name: str) -> None:
    """Other inputs than those of `make fuzz`, whose seed is 0."""
    tally = worker.run(name, TARGETS[name], 1, range(10**6), SECONDS / len(TARGETS))
    if tally.unavailable:
        pytest.skip(tally.unavailable)
    assert tally.found == []
    assert tally.inputs > 0


def test_inputs_that_were_defects_are_none_now(worker: Worker) -> None:
    """`found.json` has target, seed and number of each, and what happened then."""
    cases = json.loads(FOUND.read_text())
    assert len(cases) > 5
    for case in cases:
        name, number = case["target"], case["input"]
        tally = worker.run(name, TARGETS[name], case["seed"], range(number, number + 1))
        assert tally.unavailable or tally.inputs == 1
        assert tally.found == []


def test_sanitizers_see_a_bug_in_the_parser(tmp_path: Path) -> None:
    """A parser that writes one row more than there is room for."""
    text = cpp_parser.SOURCES[0].read_text()
    before, after = "rows == out.capacity", "rows == out.capacity + 1"
    assert text.count(before) == 1
    broken = tmp_path / "skeleton_text.cpp"
    broken.write_text(text.replace(before, after))
    try:
        program = cpp_parser.build(tmp_path, (broken, cpp_parser.SOURCES[1]))
    except Unavailable as reason:
        pytest.skip(str(reason))
    driver = cpp_parser.Driver(program)
    driver.start()
    path = tmp_path / "a.skeleton"
    # Denser than a sensor writes it, so that there is no room for its rows.
    path.write_text("1\n9\n" + ("1\n25\n" + "0 0 0\n" * 25) * 9)
    with pytest.raises(Crashed, match="AddressSanitizer: heap-buffer-overflow"):
        driver.read(path)
    driver.close()
    assert driver.process.returncode != 0
