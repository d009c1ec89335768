"""What docs/training.md says of numbers and keys is so, and its command runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sjepa_fast.config.continued import FIXED, INPUT, LOWER
from sjepa_fast.config.schema import RuntimeConfig
from sjepa_fast.training.health import LEAST, SIGMAS, WINDOW
from tests.tiny import ROOT, SMALL, blocks, flags, run_documented

TEXT = (ROOT / "docs" / "training.md").read_text()


def test_numbers_are_those_of_the_code() -> None:
    plain = " ".join(TEXT.split())
    assert f"in a row (default {RuntimeConfig().max_skipped})" in plain
    assert f"the {WINDOW} steps before, once there are {LEAST} of them: {SIGMAS} robust" in plain


def test_every_key_of_the_diagnosis_is_in_the_table() -> None:
    source = (ROOT / "sjepa_fast" / "training" / "diagnosis.py").read_text()
    written = set(re.findall(r'^        "(\w+)": ', source, re.M))
    rows = re.findall(r"^\| (`.*?) \|", TEXT, re.M)
    assert written == set(re.findall(r"`(\w+)`", " ".join(rows)))


def test_commands_run(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # As if the embedded data had been made before.
    Path("runs").mkdir()
    Path("runs/synthetic").symlink_to(store)
    Path("stores").mkdir()
    Path("stores/mine").symlink_to(store)
    synthetic, going_on = (block.strip() for block in blocks("docs/training.md", "sh"))
    short = {**SMALL, "optim.length": 2, "optim.unit": "steps"}
    del short["optim.batch-size"]
    run_documented([*shlex.split(synthetic), *flags(short)])
    # The model's sizes stay.
    own = {key: value for key, value in short.items() if key.split(".")[0] not in ("data", "model")}
    done = run_documented([*shlex.split(going_on), *flags({**own, "data.split": "xsub"})])
    assert "continues tiny (mamp, trained on ui_prmd)" in done.stdout


def test_the_table_of_going_on_names_what_is_taken_over() -> None:
    rows = [row for row in TEXT.splitlines() if row.startswith("| `data.")]
    fixed, inputs = (set(re.findall(r"`(\S+?)`", row)) for row in rows)
    assert fixed == {key for key in FIXED if key.startswith("data.")}
    assert inputs == set(INPUT)
    assert LOWER == 0.1 and "a tenth of the recipe's" in TEXT
