"""Every command of docs/report.md is run as it stands."""

import shlex
import shutil
from pathlib import Path

import pytest

from tests.reporting.runs import data_of
from tests.tiny import blocks, run_documented


def test_documented_commands(
    sjepa_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, old, new in (
        ("seed0", "", ""),
        ("seed1", "seed: 0", "seed: 1"),
        ("fast", "\n  lr: ", "\n  lr: 1"),
    ):
        shutil.copytree(sjepa_run, tmp_path / "runs" / name)
        config = tmp_path / "runs" / name / "config.yaml"
        config.write_text(config.read_text().replace(old, new))
    (tmp_path / "runs/seed0/report.html").unlink()
    lines = [line for block in blocks("docs/report.md", "sh") for line in block.splitlines()]
    assert len(lines) == 2
    for line in lines:
        run_documented(shlex.split(line))
    assert len(data_of(tmp_path / "runs/seed0/report.html")["groups"]) == 1
    groups = data_of(tmp_path / "compared.html")["groups"]
    assert [group["seeds"] for group in groups] == [[0, 1], [0]]
