"""The README's commands and snippets are run as they stand (training runs are shortened)."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHORT = ["--optim.length", "3", "--optim.warmup", "1", "--log.knn-every", "0"]


def blocks(file: str, language: str) -> list[str]:
    text = (ROOT / file).read_text()
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.M | re.S)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("README.md", "sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if "nucla" in line]


@pytest.mark.slow
def test_real_data_lines_work_one_after_another(data_root: Path, tmp_path: Path):
    found = commands()
    verbs = [words[2].removeprefix("sjepa_fast.") for words in found]
    assert verbs == ["prepare", "train", *["evaluate"] * (len(found) - 2)] and len(found) >= 5
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    for verb, words in zip(verbs, found, strict=True):
        arguments = [word.replace("../shared/data", str(data_root)) for word in words[1:]]
        arguments += SHORT if verb == "train" else []
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, (words, done.stderr)
    results = {file.stem for file in (tmp_path / "runs/nucla/results").glob("*.json")}
    assert "linear-target-joint-nucla-xview" in results
    assert "linear-target-mean-nucla-xview_clean" in results


@pytest.mark.parametrize("file", ["README.md", "kernels/README.md"])
def test_snippets_run(file: str):
    found = blocks(file, "python")
    assert found
    for code in found:
        lines = code.splitlines()
        indent = len(lines[0]) - len(lines[0].lstrip())
        exec("\n".join(line[indent:] for line in lines), {})
