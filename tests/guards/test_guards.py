"""Guards are where the table says, the record is of them, and one that nothing holds shows."""

from __future__ import annotations

import json
from pathlib import Path

from tests.guards.__main__ import BEGIN, END, copy_tree, holds, table, without
from tests.guards.table import GUARDS, Guard
from tests.tiny import ROOT, no_tests

RECORD = ROOT / "benchmarks/results/cpu-2-cores/guards.json"


def test_every_guard_is_in_its_file_once_and_has_tests() -> None:
    assert [g.seen for g in GUARDS if (ROOT / g.file).read_text().count(g.guard) != 1] == []
    assert len({guard.seen for guard in GUARDS}) == len(GUARDS)
    for guard in GUARDS:
        assert guard.guard != guard.without
        assert [no_tests(f"`{test.partition('[')[0]}`") for test in guard.tests if test] == [
            [] for _ in guard.tests
        ]


def test_the_recorded_table_is_of_these_guards_and_each_is_held() -> None:
    record = json.loads(RECORD.read_text())
    assert [(row["seen"], row["file"]) for row in record["rows"]] == [
        (guard.seen, guard.file) for guard in GUARDS
    ]
    for row, guard in zip(record["rows"], GUARDS, strict=True):
        assert tuple(test["test"] for test in row["tests"]) == guard.tests
        assert holds(row), row
    text = (ROOT / "docs/reliability.md").read_text()
    assert text.partition(BEGIN)[2].partition(END)[0].strip() == table(record)


def test_a_guard_that_no_test_holds_is_found(tmp_path: Path) -> None:
    copy_tree(tmp_path)
    seen, file = "names reached the terminal raw", "sjepa_fast/names.py"
    tests = ("tests/test_names.py::test_printable_says_what_was_there",)
    guard = next(guard for guard in GUARDS if guard.seen == seen)._replace(tests=tests)
    whole = (tmp_path / file).read_text()
    found = without(guard, tmp_path)
    assert found == [{"test": tests[0], "failed": 1, "passed": 0, "error": 0}]
    assert holds({"tests": found})
    assert (tmp_path / file).read_text() == whole
    nothing = Guard(seen, file, '"""Send what is printed', '"""Send what was printed', tests)
    assert not holds({"tests": without(nothing, tmp_path)})
    broken = Guard(seen, file, "import hashlib\n", "import no_such_module\n", tests)
    assert not holds({"tests": without(broken, tmp_path)})
