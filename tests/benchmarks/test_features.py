"""The tables of methods and protocols: plan, one tiny real run of it, rows, and the document."""

from __future__ import annotations

import json
import shlex
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.executor import Ended, Job, run_jobs
from benchmarks.features import __main__ as features
from benchmarks.features import page, rows
from benchmarks.features.plan import (
    COLUMNS,
    METHODS,
    RAW_RESULTS,
    ROWS,
    SETS,
    Plan,
    Set,
    make_plan,
)
from sjepa_fast import cli, evaluate
from sjepa_fast.config.files import parse_train
from sjepa_fast.config.rule import StoreFacts
from sjepa_fast.data.store import Store, open_store
from sjepa_fast.data.store_writer import StoreWriter
from sjepa_fast.data.synthetic import write_synthetic_store
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.protocols import PROTOCOLS
from sjepa_fast.merge import MERGE, MergeConfig
from tests.tiny import ROOT, SMALL, blocks, flags

# Of any set: what the rule chooses does not matter here.
FACTS = StoreFacts("any", "xsub", "given", 1000, 1000, 30, 20, 1, 10)
TINY = " ".join(flags(SMALL | {"data.bodies": 2, "optim.length": 2}))
SHORT = "--recipe.length 2 --recipe.warmup 1 --recipe.hidden 8"


def test_the_plan_has_every_cell_once_and_each_after_what_it_needs(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "data", tmp_path)
    keys = [cell.key for cell in plan.cells]
    assert len(set(keys)) == len(keys)
    splits = sum(len(kind.splits) for kind in SETS.values())
    # Two columns of raw coordinates, once; five frozen; two from scratch; seven of each method.
    # The pool has one split of each set.
    methods = len(METHODS) - 1
    assert len(keys) == splits * (len(RAW_RESULTS) + 3 * (5 + 2 + 7 * methods)) + 3 * 7 * len(SETS)
    assert [key[4] for key in keys] == sorted(key[4] for key in keys), "seed by seed"
    jobs = plan.jobs(set())
    place = {job.name: at for at, job in enumerate(jobs)}
    assert len(place) == len(jobs) == len({job.file for job in jobs})
    for at, job in enumerate(jobs):
        assert all(place[need] < at for need in job.needs)
    trainings = [job for job in jobs if job.module == "sjepa_fast.train"]
    assert len(trainings) == splits * 3 * methods + 3


def test_only_what_the_missing_cells_need_is_made(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "data", tmp_path)
    every = {cell.key for cell in plan.cells}
    assert plan.jobs(every) == []
    left = plan.jobs(every - {("sbu", "fold3", "mamp", "joint", 1)})
    assert [job.name for job in left] == [
        "prepare-sbu",
        "mamp-sbu-fold3-s1",
        "mamp-sbu-fold3-s1-joint",
    ]
    left = plan.jobs(every - {("nucla", "xview", "pooled", "joint", 1)})
    stores = [f"prepare-{name}" for name in SETS]
    assert [job.name for job in left] == [
        *stores,
        "pool",
        "pooled-s1",
        "pooled-nucla-xview-s1-joint",
    ]


def test_the_pool_is_one_of_all_sets_whichever_are_scored(tmp_path: Path) -> None:
    alone = make_plan(tmp_path, tmp_path, sets={"sbu": SETS["sbu"]}, methods={"pooled": ""})
    whole = make_plan(tmp_path, tmp_path)
    for name in ("pool", "pooled-s0", "prepare-nucla"):
        assert alone.before[name] == whole.before[name]
    pooled = [cell for cell in alone.cells if cell.row == "pooled"]
    assert {cell.split for cell in pooled} == {"fold0"} and len(pooled) == 3 * len(COLUMNS)
    word, *words = alone.before["pool"].words
    assert word == MERGE
    request = cli.parse(MergeConfig, words, prog="merge")
    assert [store.name for store in request.stores] == list(SETS)
    assert "bandai_namco=xstyle" in request.split and request.out == tmp_path / "stores" / "pool"
    texts = rows._commands(pooled[0], alone, tmp_path)
    assert [text.split()[:2] for text in texts] == [
        ["sjepa_fast.prepare", "merge"],
        ["sjepa_fast.train", "sjepa-pool"],
        ["sjepa_fast.evaluate", "knn"],
    ]


def test_the_commands_have_flags_that_exist(tmp_path: Path) -> None:
    sets = {name: replace(kind, splits=kind.splits[:1]) for name, kind in SETS.items()}
    plan = make_plan(tmp_path, tmp_path, sets=sets, seeds=(0,))
    for job in plan.before.values():
        if job.module == "sjepa_fast.train":
            config = parse_train(list(job.words), lambda *_: FACTS)
            assert config.checkpoint.every > config.optim.length
            assert config.data.root == tmp_path / "stores" / job.needs[0].removeprefix("prepare-")
    scored = [cell for cell in plan.cells if cell.store == "nucla" and cell.row in ("raw", "mamp")]
    assert len(scored) == len(RAW_RESULTS) + len(COLUMNS)
    for cell in scored:
        protocol, run, *words = cell.job.words
        request = cli.parse(PROTOCOLS[protocol].request, [run, *words], prog="evaluate")
        assert request.run == cell.job.file.parent.parent


def with_part(source: Store, out: Path) -> Store:
    """Copy a store, with a split that has every other test clip of xview."""
    with StoreWriter(out, "synthetic", source.layout, source.class_names) as writer:
        for i, name in enumerate(source.names):
            writer.add(str(name), source.clip(i), int(source.labels[i]), {})
        whole = source.splits["xview"]
        part = whole.copy()
        part[source.ids("xview", "test")[::2]] = 0
        return writer.finish({"xview": whole, "half": part}, "")


SET = Set("Synthetic", "none", ("xview",), "half", "Synthetic, half")


def tiny_plan(work: Path, knn: str = "") -> Plan:
    """The columns of each kind; what is trained takes two steps."""
    columns = {
        name: replace(COLUMNS[name], words=f"{COLUMNS[name].words} {SHORT * trains}")
        for name, trains in (("knn", False), ("full", False), ("finetune", True), ("semi", True))
    }
    columns["knn"] = replace(columns["knn"], words=columns["knn"].words + knn)
    options = {"columns": columns, "methods": {"sjepa": ""}, "seeds": (0,)}
    return make_plan(work, work, sets={"synthetic": SET}, more=TINY, **options)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder in which the tiny plan has been run."""
    folder = tmp_path_factory.mktemp("features")
    (folder / "stores").mkdir()
    source = write_synthetic_store(folder / "source", subjects=2, repetitions=1)
    with_part(source, folder / "stores" / "synthetic")
    ended = run_jobs(tiny_plan(folder).jobs(set()), folder, 1)
    assert {outcome.state for outcome in ended} == {"done"}, ended
    return folder


def test_a_plan_is_run_and_collected(work: Path, tmp_path: Path) -> None:
    plan = tiny_plan(work)
    content = rows.merge(rows.known(tmp_path / "none.json", plan, work),
                         rows.collect(plan, work, {"synthetic": SET}))  # fmt: skip
    found = {(row["row"], row["column"]): row for row in content["rows"]}
    assert found.keys() == {
        *(("raw", column) for column in ("knn", "full")),
        *(("random", column) for column in ("knn", "full")),
        *(("scratch", column) for column in ("finetune", "semi")),
        *(("sjepa", column) for column in ("knn", "full", "finetune", "semi")),
    }
    store = open_store(work / "stores" / "synthetic")
    for cell in plan.cells:
        row = found[cell.row, cell.column]
        result = json.loads(cell.job.file.read_text())
        assert row["top1"] == pytest.approx(result["headline"])
        assert row["part"]["test_clips"] * 2 == row["test_clips"] == len(store.ids("xview", "test"))
        assert content["recipes"][row["recipe"]] == result["recipe"]
        assert not any(str(work) in command for command in row["commands"])
    # A command of the part alone scores the same.
    run = work / "runs" / "sjepa-synthetic-xview-s0"
    alone = ["knn", str(run), "--data.split", "half", "--pool", "full", "--scaling", "pca"]
    assert evaluate.run([*alone, "--no-baselines"]) == 0
    scored = json.loads((run / "results" / "knn-target-full-pca-synthetic-half.json").read_text())
    part = found["sjepa", "knn"]["part"]
    assert (part["top1"], part["standard_error"]) == pytest.approx(
        (scored["headline"], scored["standard_error"])
    )
    # So does a process that has done nothing else before, to the last prediction.
    tuned = next(cell.job for cell in plan.cells if cell.key[2:4] == ("sjepa", "finetune"))
    kept = json.loads(tuned.file.read_text())
    tuned.file.unlink()
    assert evaluate.run(list(tuned.words)) == 0
    assert json.loads(tuned.file.read_text())["predicted"] == kept["predicted"]

    file = tmp_path / "features.json"
    rows.write_rows(file, content)
    again = rows.known(file, plan, work)
    assert plan.jobs({rows.key_of(row) for row in again["rows"]}) == []
    changed = tiny_plan(work, knn=" --k 3")
    assert ("sjepa", "knn") not in {
        (row["row"], row["column"]) for row in rows.known(file, changed, work)["rows"]
    }, "a row of another command is made again"
    with pytest.raises(InputError, match=r"made by other flags: .*--scaling pca"):
        rows.collect(changed, work, {"synthetic": SET})


def test_rows_of_other_stores_or_changed_results_are_left_out(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tiny_plan(work)
    cell = next(cell for cell in plan.cells if cell.column == "knn")
    text = cell.job.file.read_text()
    for key, value in (("headline", 1.5), ("store_fingerprint", "other")):
        cell.job.file.write_text(json.dumps(json.loads(text) | {key: value}))
        found = rows.collect(plan, work, {"synthetic": SET})
        assert cell.key not in map(rows.key_of, found["rows"])
        assert f"left out: result: {cell.job.file} " in capsys.readouterr().err
    cell.job.file.write_text(text)
    good = rows.collect(plan, work, {"synthetic": SET})
    assert len(good["rows"]) == len(found["rows"]) + 1
    other = good | {"stores": {"synthetic": "other"}}
    with pytest.raises(InputError, match="another synthetic"):
        rows.merge(other | {"recipes": {}}, good)


def row(name: str, column: str, seed: int, top1: float, split: str = "xview") -> dict[str, Any]:
    return {
        **{"set": "nucla", "split": split, "row": name, "column": column, "seed": seed},
        **{"top1": top1, "train_clips": 1020, "test_clips": 464, "features": 1280},
        **{"part": {"top1": top1 - 10, "test_clips": 369}},
    }


def test_a_table_has_means_and_standard_errors_over_seeds() -> None:
    found = [row("sjepa", "joint", seed, top1) for seed, top1 in enumerate((70.0, 73.0, 76.0))]
    found += [row("sjepa", "finetune", 0, 85.0), row("raw", "full", 0, 60.0)]
    text = page.set_table(found, SETS["nucla"])
    error = statistics.stdev((70.0, 73.0, 76.0)) / 3**0.5
    assert f"| S-JEPA |  |  | 73.0 ± {error:.1f} |  |  | 85.0 (1) |  |" in text
    assert "| raw coordinates |  |  |  |  | 60.0 |  |  |" in text
    assert "1,020 training and 464 test clips; 3 seeds; numbers per clip: finetune 1,280, " in text
    wide = [*found, row("pooled", "joint", 0, 80.0) | {"features": 2560}]
    widths = "joint 1,280, raw 1,280; on all sets at once: joint 2,560."
    assert widths in page.set_table(wide, SETS["nucla"])
    assert "63.0 ± 1.7" in page.set_table(found, SETS["nucla"], part=True)
    assert ROWS["scratch"] not in text, "a row without scores is left out"


def test_a_machine_s_rows_become_a_page(tmp_path: Path) -> None:
    facts = {"torch": "2.11", "dtype": "bfloat16"}
    content = {
        "command": "python -m benchmarks.features run --data DATA",
        "machine": {"gpu": "NVIDIA H100 80GB HBM3", "sjepa_fast": "0.1.0"},
        "stores": {"nucla": "same"},
        "rows": [row("sjepa", "joint", 0, 70.0) | facts],
    }
    rows.write_rows(tmp_path / "gpu-nvidia-h100-80gb-hbm3" / "features.json", content)
    text = page.tables(tmp_path)
    assert "DATA`: 1 on NVIDIA H100 80GB HBM3, bfloat16, torch 2.11" in text
    assert text.count("## ") == 2 and SETS["nucla"].part_title in text
    assert all(len(line) <= 120 for line in text.splitlines() if not line.startswith("|"))

    # Of two machines each cell is that of the one with more of them.
    more = [row("sjepa", "joint", seed, 80.0 + seed) | facts for seed in range(2)]
    other = content | {"machine": {"gpu": None, "sjepa_fast": "0.2.0"}, "rows": more}
    rows.write_rows(tmp_path / "cpu-2-cores" / "features.json", other)
    text = page.tables(tmp_path)
    assert "2 on a CPU" in text and "0 on NVIDIA" in text and "80.5 ± 0.5" in text
    rows.write_rows(
        tmp_path / "cpu-2-cores" / "features.json", other | {"stores": {"nucla": "other"}}
    )
    with pytest.raises(ValueError, match="has another nucla"):
        page.tables(tmp_path)


def test_one_table_has_what_was_tuned_by_the_recipe_as_it_is(tmp_path: Path) -> None:
    assert page.tuned_table(tmp_path) == page.NONE
    facts = {"torch": "2.13", "dtype": "float32"}
    found = [row("scratch", "finetune", seed, 80.0 + seed) | facts for seed in range(2)]
    content = {
        "command": "python -m benchmarks.features run --data DATA",
        "machine": {"gpu": None, "sjepa_fast": "0.2.0"},
        "stores": {"nucla": "same"},
        "rows": [*found, row("pooled", "finetune", 0, 90.0) | facts],
    }
    rows.write_rows(tmp_path / "cpu-2-cores" / "tuned" / "features.json", content)
    text = page.tuned_table(tmp_path)
    assert "3 on a CPU" in text and "cpu-2-cores/tuned/features.json" in text and "2 seeds" in text
    assert "| from scratch | 80.5 ± 0.5 | 70.5 ± 0.5 |" in text
    assert "| S-JEPA, on all sets at once | 90.0 (1) | 80.0 (1) |" in text
    assert page.tables(tmp_path) == page.NONE, "the other tables are of the recipe of before"


def test_the_recipe_of_what_is_trained_can_be_given(tmp_path: Path) -> None:
    options = {"sets": {"nucla": SETS["nucla"]}, "methods": {"sjepa": ""}, "seeds": (0,)}
    as_now = make_plan(tmp_path, tmp_path, tuning="", **options)
    before = make_plan(tmp_path, tmp_path, **options)
    for mine, other in zip(as_now.cells, before.cells, strict=True):
        trains = "--recipe.mixup" in other.job.words
        assert trains == COLUMNS[mine.column].trains == (mine.job.words != other.job.words)
        assert not any(word.startswith("--recipe.") for word in mine.job.words)


def test_a_seed_counts_when_all_its_folds_are_there() -> None:
    folds = SETS["sbu"].splits
    found = [row("mamp", "knn", 0, 60.0 + i, fold) for i, fold in enumerate(folds)]
    found += [row("mamp", "knn", 1, 10.0, fold) for fold in folds[:4]]
    assert page.seed_scores(found, SETS["sbu"], part=False) == {("mamp", "knn"): [62.0]}
    found.append(row("pooled", "knn", 0, 50.0, folds[0]))
    assert page.seed_scores(found, SETS["sbu"], part=False)["pooled", "knn"] == [50.0]
    assert "on all sets at once (fold0 alone) | 50.0 |" in page.set_table(found, SETS["sbu"])


def test_the_document_has_the_tables_of_the_committed_rows() -> None:
    text = features.DOCUMENT.read_text()
    assert page.with_tables(text, features.RESULTS) == text


def test_left_over_commands_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", "DATA", "--work", str(tmp_path), "--seeds", "1", "--sets", "utkinect"]
    assert features.main(["list", *words, "--methods", "mamp", "--columns", "knn"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2:4] for line in lines] == [
        ["sjepa_fast.prepare", "utkinect"],
        ["sjepa_fast.train", "mamp-small"],
        ["sjepa_fast.evaluate", "knn"],
    ]
    assert not list(tmp_path.iterdir())


def test_the_documented_commands_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "results.md"
    document.write_text(features.DOCUMENT.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(features, "DOCUMENT", document)
    given: list[tuple[int, Path, int, dict[str, float]]] = []

    def run(jobs: list[Job], work: Path, workers: int, **more: float) -> list[Ended]:
        given.append((len(jobs), work, workers, more))
        return [Ended("a", "done"), Ended("b", "left")]

    monkeypatch.setattr(features, "run_jobs", run)
    (block,) = blocks("docs/results.md", "sh")
    for line in block.splitlines():
        words = shlex.split(line)
        assert words[:3] == ["python", "-m", "benchmarks.features"]
        assert features.main(words[3:]) == 0
    every = make_plan(tmp_path, tmp_path).jobs(set())
    tuned = make_plan(tmp_path, tmp_path, columns={"finetune": COLUMNS["finetune"]}).jobs(set())
    work = Path("runs/features")
    assert given == [
        (len(every), work, 16, {"minutes": 30.0, "grace": 30.0}),
        (len(tuned), work, 2, {"minutes": None, "grace": 30.0}),
    ]
    assert document.read_text() == (ROOT / "docs" / "results.md").read_text()
    assert len(capsys.readouterr().out.splitlines()) > 400
    for folder, more in (("OUT", ""), ("OUT/tuned", " --tuning ''")):
        written = json.loads(Path(folder, "features.json").read_text())
        assert written["rows"] == []
        assert written["command"] == f"python -m benchmarks.features run --data DATA{more}"
