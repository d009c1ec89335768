"""docs/reliability.md names tests that exist, and its table of kills is the recorded one."""

from __future__ import annotations

import json

from sjepa_fast.config.traits import TRAITS
from tests.fuzz.target import GOOD, all_targets
from tests.tiny import ROOT, no_tests
from tests.torture.__main__ import BEGIN, END, WRONG, tables

TEXT = (ROOT / "docs/reliability.md").read_text()
RECORDS = ROOT / "benchmarks/results/cpu-2-cores"


def test_every_fault_has_a_test_that_exists() -> None:
    faults = TEXT.partition("| --- |")[2].partition("\n\n")[0].splitlines()[1:]
    assert len(faults) > 10
    assert [wrong for line in faults for wrong in no_tests(line.split("|")[-2])] == []


def test_the_tables_of_kills_are_the_recorded_ones_and_have_every_objective() -> None:
    assert TEXT.partition(BEGIN)[2].partition(END)[0].strip() == tables(RECORDS)
    files = RECORDS.glob("torture*.json")
    rows = [row for file in files for row in json.loads(file.read_text())["rows"]]
    assert sum(row["kills"] for row in rows) >= 1000
    assert {(row["objective"], row["processes"]) for row in rows} == {
        (kind, count) for kind in TRAITS for count in (1, 2)
    }
    assert all(row[name] == 0 for row in rows for name in WRONG)


def test_the_table_of_changed_files_is_the_recorded_one() -> None:
    record = json.loads((RECORDS / "fuzz.json").read_text())
    assert record["inputs"] >= 100_000
    assert all(target["inputs"] >= 5000 for target in record["targets"].values())
    assert set(record["targets"]) == set(all_targets())
    lines = TEXT.partition("<!-- fuzz begin -->")[2].partition("<!-- fuzz end -->")[0].split("\n")
    shown = [line.strip("| ").split(" | ") for line in lines if line][2:]
    assert len(shown) == len(record["targets"])
    for name, *cells in shown:
        found = record["targets"][name]
        good = [found["outcomes"][kind] for kind in GOOD]
        assert [int(cell) for cell in cells[:5]] == [found["inputs"], *good, 0]
        assert sum(good) == found["inputs"]
