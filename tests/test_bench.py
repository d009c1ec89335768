"""`sjepa bench`: some steps of a run that is not kept, and the page of their times."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest

from sjepa_fast.bench import main
from tests.tiny import SMALL, call, flags


def test_a_page_is_printed_and_nothing_is_kept(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    done = call(main, "sjepa-demo", "--data.root", store, *flags(SMALL))
    assert done.returncode == 0, done.stderr
    found = re.search(r"([\d.]+) ms per step as the run has it", done.stdout)
    assert found and float(found[1]) > 0
    assert "| backward |" in done.stdout and "aten::" in done.stdout
    assert "training clips" not in done.stdout, "what train says of its run is not for here"
    assert not list(tmp_path.glob("sjepa-bench-*"))


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    for words, said in (
        (("--run", tmp_path / "run"), "leave --run and --resume out"),
        (("--resume=auto",), "leave --run and --resume out"),
        (("--optim.lrr", "1"), "nearest: --optim.lr"),
    ):
        refused = call(main, *words)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1
        assert said in refused.stderr, refused.stderr
    assert "usage: " in call(main, "--help").stdout
