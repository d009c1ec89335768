"""The trials on validation parts: what each changes, what is needed for it, and the table."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import trials
from benchmarks.executor import Job
from sjepa_fast import evaluate
from sjepa_fast.config.files import parse_train
from sjepa_fast.config.presets import preset
from sjepa_fast.config.schema import replace
from sjepa_fast.data.store import open_store
from sjepa_fast.run_folder import describe_run, read_run


@pytest.fixture
def run(store: Path, tmp_path: Path) -> Path:
    """A run folder of a pool's preset without weights."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = replace(preset("sjepa-pool"), data={"root": store, "split": "xview"})
    describe_run(dataclasses.replace(config, run=folder), open_store(store))
    return folder


def every(work: Path, **chosen: Any) -> tuple[list[trials.Cell], dict[str, Job]]:
    before = trials.preparations(Path("data"), work)
    told = {"seeds": [0, 1], "sets": list(trials.SCORED), "tried": trials.TRIED} | chosen
    return list(trials.cells(work, before=before, **told)), before


def test_each_score_has_a_file_of_its_own_and_all_that_it_needs(tmp_path: Path) -> None:
    cells, before = every(tmp_path)
    assert len({cell.job.name for cell in cells}) == len({cell.job.file for cell in cells})
    assert len({cell.job.file for cell in cells}) == len(cells)
    jobs = trials.needed(cells, before)
    at = {job.name: number for number, job in enumerate(jobs)}
    assert all(at[need] < at[job.name] for job in jobs for need in job.needs)
    # Nothing of it sees a test part.
    scored = [job.words for job in jobs if job.module == "sjepa_fast.evaluate"]
    assert all(words[words.index("--data.split") + 1] == "val" for words in scored)
    assert {cell.tried for cell in cells} == set(trials.TRIED)


@pytest.mark.parametrize("name", trials.POOLS)
def test_a_pool_changes_the_preset_by_its_flags(name: str, tmp_path: Path) -> None:
    job = trials.pretraining(name, "", 1, tmp_path)
    own = trials.pretraining(trials.PRESET, "", 1, tmp_path)
    found, whole = (parse_train(list(words)) for words in (job.words, own.words))
    assert found.seed == 1 and found.run == tmp_path / "runs" / job.name
    assert (dataclasses.replace(found, run=whole.run) == whole) == (name == trials.PRESET)
    assert (found.model != whole.model) == ("--model." in trials.POOLS[name])


@pytest.mark.parametrize("name", trials.RECIPES)
def test_a_recipe_changes_the_strong_one(name: str, run: Path) -> None:
    words = ["finetune", str(run), *trials.RECIPES[name].split()]
    strong = evaluate.parse_request("finetune", words[1:2])
    assert strong.recipe.name == "strong"
    assert evaluate.parse_request("finetune", words[1:]).recipe != strong.recipe


def test_another_recipe_gets_the_run_without_its_results(run: Path, tmp_path: Path) -> None:
    (run / "results").mkdir()
    (run / "results" / "finetune-target-nucla-val.json").write_text("{}")
    assert trials.main(["copy", str(run), str(tmp_path / "copy")]) == 0
    assert read_run(tmp_path / "copy") == read_run(run)
    assert [file.name for file in (tmp_path / "copy" / "results").iterdir()] == ["copied"]


def test_scores_become_rows_and_a_table(tmp_path: Path) -> None:
    cells, _ = every(tmp_path, sets=["nucla"], tried=["small"])
    result = dict.fromkeys(trials.KEPT, 1) | {"standard_error": 2.0}
    for cell in cells:
        if cell.score == "1-NN, full":
            cell.job.file.parent.mkdir(parents=True)
            cell.job.file.write_text(json.dumps(result | {"headline": 70.0 + cell.seed}))
    content = trials.collect(cells, tmp_path)
    assert [row["top1"] for row in content["rows"]] == [70.0, 71.0]
    assert content["rows"][0]["command"].startswith("sjepa_fast.evaluate knn WORK/runs/small-nucla")
    assert trials.table(content).splitlines()[-1] == "| small | 70.5 (2) |"
