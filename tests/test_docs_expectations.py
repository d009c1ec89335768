"""docs/expectations.md: its rows are whole, and what they name exists."""

from __future__ import annotations

import re

import pytest

from tests.tiny import ROOT, no_tests

TEXT = (ROOT / "docs" / "expectations.md").read_text()
TABLES = [
    [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in table.splitlines()[2:]
    ]
    for table in re.findall(r"(?:^\|.*\n)+", TEXT, re.M)
]


@pytest.mark.parametrize(("table", "rows"), [(0, 33), (1, 13)], ids=("expected", "asked for"))
def test_every_row_has_an_answer_and_a_test_that_exists(table: int, rows: int) -> None:
    assert len(TABLES[table]) == len({row[0] for row in TABLES[table]}) == rows
    for what, how, proof in TABLES[table]:
        assert what and how, what
        assert no_tests(proof) == [], what
        # A command, a page or a name to type; else a reason.
        assert re.search(r"`|\]\(|\bno: \w", how), what


def test_nothing_but_the_two_tables() -> None:
    assert len(TABLES) == 2


def test_what_is_no_test_is_found() -> None:
    here = "tests/test_docs_expectations.py"
    real = test_what_is_no_test_is_found.__name__
    assert no_tests(f"`{here}`, `{here}::{real}`") == []
    assert no_tests(f"`{here}::test_none`, `tests/tiny.py`") == [
        f"{here}::test_none",
        "tests/tiny.py::",
    ]
    assert no_tests("none") == ["none"]
