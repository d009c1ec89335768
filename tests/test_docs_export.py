"""docs/export.md: its commands and snippets run as they stand."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path

import pytest

from sjepa_fast.embedding.portable import FORMATS, MOST_APART
from tests.tiny import ROOT, blocks, run_documented, trained

DOCUMENT = "docs/export.md"


def test_commands_and_snippets_run(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # The demo's own sizes, which the snippets name.
    sizes = ("--model.width=64", "--model.heads=2", "--data.frames=32", "--optim.length=2")
    trained(store, Path("runs/demo"), *sizes)
    commands = [line for block in blocks(DOCUMENT, "sh") for line in block.splitlines()]
    names: dict[str, object] = {}
    for command, code in zip(commands, blocks(DOCUMENT, "python"), strict=True):
        words = shlex.split(command)
        needed = FORMATS[words[words.index("--format") + 1]].packages
        if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
            pytest.skip(f"{', '.join(missing)}: not installed (extra export)")
        done = run_documented(words)
        assert float(done.stdout.partition("within ")[2].split()[0]) < 1e-5
        exec(code, names)


def test_the_limit_is_the_codes() -> None:
    assert f"writes nothing if it is above {MOST_APART:.0e}".replace("e-04", "e-4") in " ".join(
        (ROOT / DOCUMENT).read_text().split()
    )
