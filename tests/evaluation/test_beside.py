"""Scores beside a score: raw coordinates, own initialisation, scratch; and the paired test."""

import json
import shutil
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sjepa_fast import evaluate, results
from sjepa_fast.data.synthetic import write_synthetic_store
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.beside import compare, table
from sjepa_fast.evaluation.saved import Saved, read_saved
from tests.tiny import flags, trained

DATA = "synthetic-xsub"
SHORT = ["--recipe.length", "2", "--recipe.warmup", "1", "--recipe.hidden", "8"]


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beside")
    store = write_synthetic_store(folder / "store", subjects=2, repetitions=1)
    sizes = {"data.split": "xsub", "optim.length": 2, "eval.knn-scaling": "pca"}
    return trained(store.root, folder / "run", *flags(sizes))


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


def result(run: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "results" / f"{name}-{DATA}.json").read_text())
    return found


def test_a_probe_stands_beside_raw_and_random(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.run(["linear", str(run), "--pool", "pyramid"]) == 0
    said = capsys.readouterr().out.splitlines()
    found = result(run, "linear-target-pyramid")
    labels = np.array(_labels(run))
    own = np.array(found["predicted"][0]) == labels
    assert found["headline"] == found["top1"] == pytest.approx(100 * own.mean())
    assert found["standard_error"] == pytest.approx(100 * own.std() / np.sqrt(len(labels)))
    assert found["features"] == 7 * 25 * 32 and list(found["beside"]) == ["raw", "random"]
    widths = {"raw": 2 * 16 * 25 * 3, "random": 7 * 25 * 32}
    for encoder, name in (("raw", "linear-raw"), ("random", "linear-random-pyramid")):
        row, other = found["beside"][encoder], result(run, name)
        assert row["result"] == f"{name}-{DATA}" and other["recipe"]["C"] == 0.01
        theirs = np.array(other["predicted"][0]) == labels
        assert row["headline"] == other["top1"] == pytest.approx(100 * theirs.mean())
        assert row["features"] == other["features"] == widths[encoder]
        assert row["difference"] == pytest.approx(100 * (own.mean() - theirs.mean()))
        b, c = int((own & ~theirs).sum()), int((theirs & ~own).sum())
        assert (row["own_only_right"], row["other_only_right"]) == ([b], [c])
        tail = sum(comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
        assert row["p"] == row["p_per_pair"][0] == pytest.approx(min(1, 2 * tail))
    assert [line.split()[0] for line in said if " is scored first " in line] == [
        f"linear-raw-{DATA}",
        f"linear-random-pyramid-{DATA}",
    ]
    scored, *table = said[-5:]
    assert f"({len(labels)} test clips, 5600 features) -> " in scored
    assert table[0].split() == ["top-1", "s.e.", "features", "difference", "p"]
    assert [line.split()[0] for line in table[1:]] == ["target", "raw", "random"]
    assert table[2].split()[1] == f"{found['beside']['raw']['headline']:.1f}"


def _labels(run: Path) -> list[int]:
    with np.load(run / "results" / f"linear-raw-{DATA}.scores.npz") as saved:
        labels: list[int] = saved["labels"].tolist()
    return labels


def test_what_stands_beside_is_what_is_asked_for_itself_and_made_once(run: Path) -> None:
    files = [
        run / "results" / f"{name}-{DATA}.json" for name in ("knn-raw-pca", "knn-random-mean-pca")
    ]

    def made() -> list[int]:
        return [file.stat().st_mtime_ns for file in files]

    assert evaluate.run(["knn", str(run)]) == 0
    first, content = made(), [json.loads(file.read_text()) for file in files]
    assert evaluate.run(["knn", str(run), "--encoder", "view"]) == 0
    assert made() == first, "not made again"
    for encoder in ("raw", "random"):
        assert evaluate.run(["knn", str(run), "--encoder", encoder]) == 0
    again = [json.loads(file.read_text()) for file in files]
    assert [list(row["beside"]) for row in again] == [[], ["raw"]]
    assert [{**row, "beside": {}} for row in again] == content
    second = made()
    assert evaluate.run(["knn", str(run)]) == 0
    assert made() == second, "asked for by name, it serves as well"
    assert evaluate.run(["knn", str(run), "--data.eval-crop", "0.5"]) == 0
    third = made()
    assert not set(third) & set(second), "of another crop"
    files[0].write_text("{")
    assert evaluate.run(["knn", str(run), "--data.eval-crop", "0.5"]) == 0
    assert json.loads(files[0].read_text())["eval_crop"] == 0.5, "damaged, so made again"
    assert made()[1] == third[1]
    before = set((run / "results").iterdir())
    assert evaluate.run(["knn", str(run), "--scaling", "none", "--no-baselines"]) == 0
    new = {path.name for path in set((run / "results").iterdir()) - before}
    assert new == {f"knn-target-mean-{DATA}.json", f"knn-target-mean-{DATA}.png"}
    assert result(run, "knn-target-mean")["beside"] == {}


def test_views_are_those_of_encoders_alone(run: Path) -> None:
    words = ["--recipe.name", "paper", "--recipe.epochs", "1", "--augment"]
    assert evaluate.run(["linear", str(run), *words]) == 0
    beside = result(run, "linear-target-mean-augment")["beside"]
    assert beside["raw"]["result"] == f"linear-raw-{DATA}"
    assert beside["random"]["result"] == f"linear-random-mean-augment-{DATA}"


def test_scratch_stands_beside_where_it_has_been_run(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scratch = ["finetune", str(run), "--encoder", "random", *SHORT]
    assert evaluate.run([*scratch, "--seeds", "0", "1", "2"]) == 0
    assert result(run, "finetune-random")["beside"] == {}
    assert evaluate.run(["retrieval", str(run)]) == 0
    row = result(run, "retrieval-target-mean-pca")["beside"]["scratch"]
    assert row["result"] == f"finetune-random-{DATA}" and row["features"] is None
    assert len(row["p_per_pair"]) == 3 and row["p"] == max(row["p_per_pair"])
    assert evaluate.run(["knn", str(run)]) == 0
    assert evaluate.run(["finetune", str(run), *SHORT, "--seeds", "0", "1"]) == 0
    beside = result(run, "finetune-target")["beside"]
    assert list(beside) == ["scratch", "raw, 1-NN, pca"]
    assert [len(row["p_per_pair"]) for row in beside.values()] == [2, 2]
    semi = ["semi", str(run), "--ratio", "0.5", "--seeds", "1", *SHORT]
    for encoder, wanted in (("random", []), ("target", ["scratch"])):
        assert evaluate.run([*semi, "--encoder", encoder]) == 0
        assert list(result(run, f"semi0.5-{encoder}")["beside"]) == wanted
    bare = ["knn", str(run), "--no-baselines"]
    assert evaluate.run([*bare, "--data.split", "xview"]) == 0
    other = json.loads((run / "results" / "knn-target-mean-pca-synthetic-xview.json").read_text())
    assert other["beside"] == {}, "other clips"
    assert evaluate.run(bare) == 0
    assert list(result(run, "knn-target-mean-pca")["beside"]) == ["scratch"]
    file = run / "results" / f"finetune-random-{DATA}.json"
    file.write_text(file.read_text().replace('"predicted"', '"other"'))
    assert evaluate.run(bare) == 0
    assert result(run, "knn-target-mean-pca")["beside"] == {}, "an old one"
    file.write_text("[]")
    capsys.readouterr()
    assert evaluate.run(bare) == 0
    [note] = capsys.readouterr().err.splitlines()
    assert note.startswith("note: run: ") and note.endswith(f"finetune-random-{DATA} is left out")


def saved(predicted: list[list[int]]) -> Saved:
    return Saved("other", "x", "xsub", torch.tensor(predicted), None, None)


def test_seeds_are_paired_in_order() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    own, other = [[0, 1, 2, 0], [0, 1, 0, 0]], [[0, 0, 0, 3], [1, 1, 2, 3], [0, 1, 2, 3]]
    found = compare(torch.tensor(own), saved(other), labels)
    assert found["own_only_right"] == [2, 1] and found["other_only_right"] == [1, 2]
    assert found["headline"] == pytest.approx(75) and found["difference"] == pytest.approx(-12.5)
    one = compare(torch.tensor(own[:1]), saved(other), labels)
    assert one["own_only_right"] == [2, 1, 0] and one["other_only_right"] == [1, 1, 1]
    assert one["p_per_pair"] == [1, 1, 1] and one["p"] == 1
    turned = compare(torch.tensor(other), saved(own[:1]), labels)
    assert turned["other_only_right"] == [2, 1, 0]


def test_the_table_shows_small_p_as_such() -> None:
    row = {"headline": 50.0, "standard_error": 2.5, "features": None}
    other = {"headline": 90.0, "standard_error": 1.0, "features": 64, "difference": -40, "p": 1e-9}
    first, second, third = table({**row, "encoder": "view", "beside": {"raw": other}}).splitlines()
    assert first.split() == ["top-1", "s.e.", "features", "difference", "p"]
    assert second.split() == ["view", "50.0", "2.5"]
    assert third.split() == ["raw", "90.0", "1.0", "64", "-40.0", "<0.001"]
    assert len(first) == len(third)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("predicted", [[1, 2], [1]], "no lists of labels"),
        ("predicted", [1, 2], "no lists of labels"),
        ("predicted", [["a", "b"]], "no lists of labels"),
        ("predicted", [[1.5, 2.0]], "no lists of labels"),
        ("predicted", [[2**70, 1]], "no lists of labels"),
        ("predicted", [], "no lists of labels"),
        ("predicted", "1", "expected list or null"),
        ("features", "64", "expected int or null"),
        ("features", True, "expected int or null"),
        ("split", None, "expected str"),
        ("request_sha256", 5, "expected str or null"),
    ],
)
def test_a_saved_result_is_checked(tmp_path: Path, key: str, value: object, reason: str) -> None:
    content: dict[str, object] = {"store_fingerprint": "x", "split": "xsub", "predicted": [[1, 2]]}
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))
    good = read_saved(tmp_path, "a")
    assert good is not None and good.predicted_SQ.tolist() == [[1, 2]] and good.features is None
    file.write_text(json.dumps({**content, key: value}))
    with pytest.raises(InputError, match=reason):
        read_saved(tmp_path, "a")
    assert read_saved(tmp_path, "b") is None


def test_the_table_of_all_results_follows_where_there_are_others(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.run(["linear", str(run)]) == 0
    assert "all results" not in capsys.readouterr().out, "its own table has them all"
    assert evaluate.run(["linear", str(run), "--pool", "joint"]) == 0
    said = capsys.readouterr().out
    _, _, table = said.partition(f"all results of {run}:\n")
    assert results.results(results.ResultsConfig((run,))) == 0
    assert table == capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines()}
    for pool in ("mean", "joint"):
        raw, random = rows[f"linear-target-{pool}-{DATA}"][3:5]
        assert raw == rows[f"linear-raw-{DATA}"][1]
        assert random == rows[f"linear-random-{pool}-{DATA}"][1]
