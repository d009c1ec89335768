"""docs/plots.md: its commands run as they stand, and its table is that of the command."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sjepa_fast.pictures import KINDS
from sjepa_fast.viz.figure import MOVING, STILL
from tests.tiny import ROOT, blocks, run_documented, trained

DOCUMENT = "docs/plots.md"


def test_commands_run(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("stores").mkdir()
    Path("stores/demo").symlink_to(store)
    trained(Path("stores/demo"), Path("runs/demo"), "--optim.length=2", "--optim.unit=steps")
    lines = [line for block in blocks(DOCUMENT, "sh") for line in block.splitlines()]
    drawn = [shlex.split(line) for line in lines]
    assert {words[3] for words in drawn} == set(KINDS)
    for words in drawn:
        run_documented(words)
        assert Path(words[-1]).stat().st_size > 1000, words


def test_the_table_has_every_kind_with_its_endings() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\..*) \|$", (ROOT / DOCUMENT).read_text(), re.M)
    wanted = {k: " ".join(STILL + (MOVING if of.moves else ())) for k, of in KINDS.items()}
    assert dict(rows) == wanted and list(dict(rows)) == list(KINDS)
