"""docs/embedding.md: its snippets and commands run as they stand."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import blocks, run_documented, trained

DOCUMENT = "docs/embedding.md"
RNG = np.random.default_rng(0)


def test_snippets_run_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks(DOCUMENT, "python")
    assert len(found) >= 3
    names: dict[str, object] = {}
    for code in found:
        exec(code, names)
    assert (tmp_path / "saved" / "README.md").exists()


def test_commands_run(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the section on the command; the others trained the model and take minutes."""
    monkeypatch.chdir(tmp_path)
    for folder, joints in (("clips", 33), ("more", 25)):
        Path(folder).mkdir()
        np.save(f"{folder}/clip.npy", RNG.normal(size=(20, joints, 3), scale=0.4))
    Path("stores").mkdir()
    Path("stores/demo").symlink_to(store)
    trained(Path("stores/demo"), Path("runs/demo"), "--optim.length=2")
    lines = [line for block in blocks(DOCUMENT, "sh") for line in block.splitlines()]
    embeds = [shlex.split(line) for line in lines if "sjepa_fast.embed" in line]
    assert len(embeds) == 2
    for words in embeds:
        run_documented(words)
    for name, rows in (("features", 1), ("joint", 169)):
        with np.load(f"{name}.npz") as file:
            assert len(file["features"]) == len(file["names"]) == rows
