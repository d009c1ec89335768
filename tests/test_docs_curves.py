"""docs/curves.md names what a run logs, and its command runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sjepa_fast.evaluation.collapse import FALLEN
from tests.tiny import ROOT, blocks, metrics, run_documented, trained

TEXT = (ROOT / "docs" / "curves.md").read_text()


def test_every_row_is_a_column_of_a_run_and_the_command_reads_it(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    short = ("--optim.length=2", "--optim.unit=steps", "--log.knn-every=1")
    trained(store, Path("runs/demo"), *short)
    logged = {key for row in metrics(Path("runs/demo")) for key in row}
    named = re.findall(r"^\| `(\w+)`", TEXT, re.M)
    assert len(named) >= 8 and set(named) <= logged
    doctor, board = blocks("docs/curves.md", "sh")
    assert "first weights" in run_documented(shlex.split(doctor)).stdout
    run_documented([*shlex.split(board), *short, "--optim.warmup=1"])
    assert list(Path("runs/seen/tensorboard").iterdir())


def test_limits_are_those_of_the_code() -> None:
    from sjepa_fast.evaluation import collapse

    source = Path(collapse.__file__).read_text()
    assert "below 2 is a collapse" in TEXT and re.search(r"rank.{0,40}< 2", source)
    assert "below 1e-3 is a collapse" in TEXT and "1e-3" in source
    assert FALLEN == 0.5 and "half of its best" in TEXT
