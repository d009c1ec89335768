"""The choice of a checkpoint: on validation clips from the training part, told beside the rest."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sjepa_fast import evaluate
from sjepa_fast.data.store import Store, open_store
from sjepa_fast.data.synthetic import write_synthetic_store
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.checkpoints import best_checkpoint, table, validation_parts
from sjepa_fast.evaluation.outcome import Outcome
from sjepa_fast.evaluation.protocols.knn import KnnRequest
from sjepa_fast.evaluation.subject import Subject, open_subject
from tests.tiny import flags, trained


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    store = write_synthetic_store(folder / "store", subjects=4, repetitions=1)
    sizes = {"data.split": "xsub", "optim.length": 3, "checkpoint.every": 1, "checkpoint.keep": 9}
    return trained(store.root, folder / "run", *flags({**sizes, "optim.lr": 0.01}))


def with_val(store: Store, first: np.ndarray, second: np.ndarray) -> Store:
    val = np.zeros(len(store), dtype=np.int8)
    val[first], val[second] = 1, 2
    return dataclasses.replace(store, splits={**store.splits, "val": val})


def test_validation_clips_are_training_clips(run: Path) -> None:
    store = open_store(run.parent / "store")
    train, test = store.ids("xsub", "train"), store.ids("xsub", "test")
    fit, held_out, origin = validation_parts(store, "xsub")
    assert np.array_equal(np.union1d(fit, held_out), train) and not np.isin(fit, held_out).any()
    assert len(held_out) == len(train) // 5 and "a fifth" in origin
    counts = np.bincount(store.labels[held_out], minlength=14)
    assert counts.max() - counts.min() <= 1
    assert np.array_equal(validation_parts(store, "xsub")[1], held_out), "always the same"
    own = with_val(store, train[::2], train[1::4])
    parts = validation_parts(own, "xsub")
    assert np.array_equal(parts[0], train[::2]) and np.array_equal(parts[1], train[1::4])
    assert parts[2] == "split val"
    for unfit in (with_val(store, train, test), with_val(store, test, train[:9])):
        assert np.array_equal(validation_parts(unfit, "xsub")[1], held_out), "no test clip is used"
    few = dataclasses.replace(store, splits={"xsub": np.where(np.arange(len(store)) < 4, 1, 2)})
    with pytest.raises(InputError, match=r"^checkpoints: all, with 4 training clips in xsub"):
        validation_parts(few, "xsub")


def test_the_later_of_the_best_on_validation_is_taken_whatever_it_has_on_test(run: Path) -> None:
    subject = open_subject(KnnRequest(run))
    held_out = validation_parts(subject.store, "xsub")[1]
    wrong_by_step = {1: (4, 0), 2: (2, 9), 3: (2, 20)}
    seen = []

    def probe(part: Subject, _request: Any) -> Outcome:
        assert part.checkpoint is not None
        validates = np.array_equal(part.test_ids.numpy(), held_out)
        assert np.isin(part.train_ids.numpy(), held_out).any() != validates
        wrong = wrong_by_step[part.checkpoint.step][0 if validates else 1]
        guess = part.labels(part.test_ids).clone()
        guess[:wrong] = (guess[:wrong] + 1) % 14
        seen.append((part.checkpoint.step, validates))
        return Outcome("knn-target-mean", {"top1_k1": float(wrong)}, {}, guess[None])

    chosen, outcome = best_checkpoint(subject, KnnRequest(run, checkpoints="all"), probe)
    assert sorted(seen) == [(s, v) for s in (1, 2, 3) for v in (False, True)]
    assert chosen.checkpoint is not None and chosen.checkpoint.step == 3
    assert torch.equal(chosen.test_ids, subject.test_ids), "the report is of the test part"
    assert outcome.name == "knn-target-mean-checkpoints" and outcome.figures["top1_k1"] == 20
    found, clips = outcome.figures["checkpoints"], len(subject.test_ids)
    assert [row["step"] for row in found["every"]] == [1, 2, 3]
    size = len(held_out)
    assert [row["validation"] for row in found["every"]] == pytest.approx(
        [100 * (size - wrong) / size for wrong in (4, 2, 2)]
    )
    assert found["chosen"] == found["last"] == found["every"][2]
    assert found["best_of_test"] == {**found["every"][0], "test": 100.0}
    shown = table(found).splitlines()
    assert [line.endswith("<- chosen") for line in shown[1:4]] == [False, False, True]
    low = f"{100 * (clips - 20) / clips:.1f}"
    assert f"chosen on validation {low}, last {low}, best of test 100.0" in shown[4]


def test_every_checkpoint_is_scored_as_it_is_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.run(["linear", str(run), "--checkpoints", "all"]) == 0
    said = capsys.readouterr().out
    found = json.loads(
        (run / "results" / "linear-target-mean-checkpoints-synthetic-xsub.json").read_text()
    )
    rows, chosen = found["checkpoints"]["every"], found["checkpoints"]["chosen"]
    assert "best of test" in said and list(found["beside"]) == ["raw", "random"]
    assert found["weights"]["step"] == chosen["step"] and found["top1"] == chosen["test"]
    assert chosen["validation"] == max(row["validation"] for row in rows)
    for row in rows[:2]:
        alone = tmp_path / str(row["step"])
        shutil.copytree(run, alone, ignore=shutil.ignore_patterns("results"))
        for folder in (alone / "checkpoints").iterdir():
            if folder.name != f"step-{row['step']:08d}":
                shutil.rmtree(folder)
        assert evaluate.run(["linear", str(alone), "--no-baselines"]) == 0
        file = alone / "results" / "linear-target-mean-synthetic-xsub.json"
        assert json.loads(file.read_text())["top1"] == row["test"]


def test_damaged_checkpoints_are_left_out_by_name(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = shutil.copytree(run, tmp_path / "run")
    (own / "checkpoints" / "step-00000001" / "model.safetensors").write_bytes(b"no weights")
    words = ["knn", str(own), "--checkpoints", "all", "--no-baselines"]
    assert evaluate.run(words) == 0
    captured = capsys.readouterr()
    assert "step-00000001" in captured.err and captured.err.strip().endswith("it is left out")
    found = json.loads(
        (own / "results" / "knn-target-mean-checkpoints-synthetic-xsub.json").read_text()
    )
    assert [row["step"] for row in found["checkpoints"]["every"]] == [2, 3]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            ["knn", "--checkpoints", "all", "--encoder", "raw"],
            r"^checkpoints: all with --encoder raw",
        ),
        (["linear", "--checkpoints", "all", "--encoder", "random"], "^checkpoints: all with"),
        (["knn", "--checkpoints", "best"], "^checkpoints: "),
        (["finetune", "--checkpoints", "all"], "^--checkpoints: no such flag"),
        (["retrieval", "--pool", "pyramids"], "^pool: .*nearest: pyramid"),
        (["knn", "--scaling", "pcaa"], "^scaling: .*nearest: pca"),
    ],
)
def test_bad_requests_name_the_argument(run: Path, words: list[str], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        evaluate.run([words[0], str(run), *words[1:]])


@pytest.mark.parametrize("protocol", ["knn", "retrieval", "linear"])
def test_a_pyramid_needs_four_segments(run: Path, tmp_path: Path, protocol: str) -> None:
    own = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("results"))
    file = own / "config.yaml"
    file.write_text(file.read_text().replace("segment_length: 4", "segment_length: 8"))
    with pytest.raises(InputError, match=r"^pool: pyramid of 2 segments; .*use joint"):
        evaluate.run([protocol, str(own), "--pool", "pyramid"])
    assert not (own / "results").exists(), "before anything is scored"
