"""docs/reliability.md names tests that exist, and its table of kills is the recorded one."""

from __future__ import annotations

import json

from tests.fuzz.target import GOOD
from tests.tiny import ROOT, no_tests
from tests.torture.__main__ import BEGIN, END, WRONG, table

TEXT = (ROOT / "docs/reliability.md").read_text()
RECORD = ROOT / "benchmarks/results/cpu-2-cores/torture.json"


def test_every_fault_has_a_test_that_exists() -> None:
    faults = TEXT.partition("| --- |")[2].partition("\n\n")[0].splitlines()[1:]
    assert len(faults) > 10
    assert [wrong for line in faults for wrong in no_tests(line.split("|")[-2])] == []


def test_the_table_of_kills_is_the_recorded_one() -> None:
    shown = TEXT.partition(BEGIN)[2].partition(END)[0].strip()
    if not RECORD.exists():
        assert shown == "No run is recorded yet."
        return
    record = json.loads(RECORD.read_text())
    assert shown == table(record)
    assert sum(row["kills"] for row in record["rows"]) >= 1000
    assert all(row[name] == 0 for row in record["rows"] for name in WRONG)


def test_the_table_of_changed_files_is_the_recorded_one() -> None:
    record = json.loads((RECORD.parent / "fuzz.json").read_text())
    assert record["inputs"] >= 100_000
    lines = TEXT.partition("<!-- fuzz begin -->")[2].partition("<!-- fuzz end -->")[0].split("\n")
    shown = [line.strip("| ").split(" | ") for line in lines if line][2:]
    assert len(shown) == len(record["targets"])
    for name, *cells in shown:
        found = record["targets"][name]
        good = [found["outcomes"][kind] for kind in GOOD]
        assert [int(cell) for cell in cells[:5]] == [found["inputs"], *good, 0]
        assert sum(good) == found["inputs"]
