"""An example is an adapter to paste."""

from __future__ import annotations

from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_examples_stay_short_enough_to_paste() -> None:
    files = list(EXAMPLES.glob("*.py"))
    assert len(files) >= 4
    assert {f.name: n for f in files if (n := len(f.read_text().splitlines())) >= 80} == {}
