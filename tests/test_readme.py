"""The README's commands and snippets are run as they stand (training runs are shortened)."""

from pathlib import Path

import pytest

from tests.tiny import blocks, nucla_lines, run_documented


@pytest.mark.slow
def test_real_data_lines_work_one_after_another(
    data_root: Path, nucla: Path, nucla_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = nucla_lines("README.md", data_root)
    verbs = [words[2].removeprefix("sjepa_fast.") for words in found]
    assert verbs == ["prepare", "train", *["evaluate"] * (len(found) - 2)] and len(found) >= 5
    monkeypatch.chdir(nucla)
    assert (nucla_run / "results/knn-before-after.json").exists(), "the first two ran"
    for words in found[2:]:
        run_documented(words)
    results = {file.stem for file in (nucla_run / "results").glob("*.json")}
    assert "linear-target-joint-nucla-xview" in results
    assert "linear-target-mean-nucla-xview_clean" in results


@pytest.mark.parametrize("file", ["README.md", "kernels/README.md"])
def test_snippets_run(file: str) -> None:
    found = blocks(file, "python")
    assert found
    for code in found:
        lines = code.splitlines()
        indent = len(lines[0]) - len(lines[0].lstrip())
        exec("\n".join(line[indent:] for line in lines), {})
