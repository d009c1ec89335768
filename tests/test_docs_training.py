"""What docs/training.md says of numbers and keys is so, and its command runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

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


def test_command_runs(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # As if the embedded data had been made before.
    Path("runs").mkdir()
    Path("runs/synthetic").symlink_to(store)
    (line,) = blocks("docs/training.md", "sh")
    short = {**SMALL, "optim.length": 2, "optim.unit": "steps"}
    del short["optim.batch-size"]
    run_documented([*shlex.split(line), *flags(short)])
