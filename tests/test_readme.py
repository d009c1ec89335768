"""The README is short; its commands and snippets, and the quickstart's, are run as they stand.

Training runs are shortened.
"""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from sjepa_fast.build import OBJECTIVES
from tests.test_house import ROOT
from tests.tiny import SMALL, blocks, flags, nucla_lines, run_documented

TEXT = (ROOT / "README.md").read_text()


def test_the_readme_is_a_landing_page() -> None:
    lines = TEXT.splitlines()
    assert len(lines) <= 130
    assert max(map(len, lines)) <= 120
    pictures = re.findall(r"!\[[^]]+\]\((\S+)\)", TEXT)
    first = "\n".join(lines[:12])
    assert {name for name in pictures if name in first} == set(pictures[:2])
    assert [Path(name).suffix for name in pictures[:2]] == [".gif", ".png"]


def test_the_table_has_every_method() -> None:
    table = TEXT.split("| `objective.kind`")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.M) == list(OBJECTIVES)


def test_own_clips_work_one_command_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    Path("my_clips").mkdir()
    rows = ["name,label"]
    for i in range(30):
        np.save(f"my_clips/c{i}.npy", draw.normal(size=(20, 17, 3), scale=0.4))
        rows.append(f"c{i},{'ab'[i % 2]}")
    Path("my_clips/labels.csv").write_text("\n".join(rows) + "\n")
    lines = [line for block in blocks("README.md", "sh") for line in block.splitlines()]
    commands = [shlex.split(line) for line in lines if "my_clips" in line]
    verbs = [words[2].removeprefix("sjepa_fast.") for words in commands]
    assert verbs == ["prepare", "train", "evaluate", "embed"]
    short = {key: value for key, value in SMALL.items() if key.partition(".")[0] != "data"}
    short = {**short, "optim.length": 2, "optim.batch-size": 8}
    for verb, words in zip(verbs, commands, strict=True):
        run_documented([*words, *(flags(short) if verb == "train" else ())])
    with np.load("features.npz") as file:
        assert len(file["features"]) == len(file["names"]) == 30


@pytest.mark.slow
def test_real_data_lines_work_one_after_another(
    data_root: Path, nucla: Path, nucla_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = nucla_lines("docs/quickstart.md", data_root)
    verbs = [words[2].removeprefix("sjepa_fast.") for words in found]
    assert verbs == ["prepare", "train", *["evaluate"] * (len(found) - 2)] and len(found) >= 5
    monkeypatch.chdir(nucla)
    assert (nucla_run / "results/knn-before-after.json").exists(), "the first two ran"
    for words in found[2:]:
        run_documented(words)
    results = {file.stem for file in (nucla_run / "results").glob("*.json")}
    assert "linear-target-joint-nucla-xview" in results
    assert "linear-target-mean-nucla-xview_clean" in results


def test_the_quickstarts_ntu_lines_are_those_of_their_pages() -> None:
    """Run there: `prepare` by test_docs_data.py, `torchrun` by test_docs_multi_gpu.py."""
    lines = [line for block in blocks("docs/quickstart.md", "sh") for line in block.splitlines()]
    prepare, train, many = [shlex.split(line) for line in lines if "ntu60" in line]
    of_data = [line for block in blocks("docs/data.md", "sh") for line in block.splitlines()]
    assert " ".join(prepare) in of_data
    assert train[3:6] == many[many.index("sjepa_fast.train") + 1 :][:3]
    ours = [line for block in blocks("README.md", "sh") for line in block.splitlines()]
    assert many in [shlex.split(line) for line in ours]
    assert "--max-restarts=3" in many and many[-2:] == ["--resume", "auto"]


@pytest.mark.parametrize("file", ["README.md", "kernels/README.md"])
def test_snippets_run(file: str) -> None:
    found = blocks(file, "python")
    assert found
    for code in found:
        lines = code.splitlines()
        indent = len(lines[0]) - len(lines[0].lstrip())
        exec("\n".join(line[indent:] for line in lines), {})
