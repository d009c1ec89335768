"""Runs, results and names of strangers: what `evaluate` reads and writes stays in its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from sjepa_fast.config.files import to_yaml
from sjepa_fast.config.schema import TrainConfig, replace
from sjepa_fast.data.clip_table import MAX_CLASSES
from sjepa_fast.data.synthetic import synthetic_clip
from sjepa_fast.errors import InputError
from sjepa_fast.evaluate import write_result
from sjepa_fast.evaluation.metrics import confusion_matrix
from sjepa_fast.evaluation.outcome import Outcome, Result
from sjepa_fast.evaluation.protocols.ensemble import (
    SCORES_BYTES,
    EnsembleRequest,
    run_ensemble,
)
from sjepa_fast.evaluation.saved import RESULT_BYTES
from sjepa_fast.evaluation.subject import clips_seen_in_training, data_record
from sjepa_fast.run_folder import read_run
from sjepa_fast.skeletons import NTU25
from sjepa_fast.viz.confusion import confusion_figure
from sjepa_fast.viz.figure import plotted, save_figure
from sjepa_fast.viz.tokens import masked_tokens, token_figure
from tests.fuzz.mutate import ODD, put_odd

NAMES = ("/../../../OWNED", "..", "a/b", "\x1b[2J\x1b]0;OWNED\x07", "a\nb", "\u202egnp", "$x^$")


@pytest.mark.parametrize("name", NAMES)
def test_a_result_stays_in_its_run_whatever_the_names(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "a" / "b" / "c" / "run"
    run.mkdir(parents=True)
    scores = torch.zeros(1, 4, 3)
    outcome = Outcome("knn-target", {"top1": 25.0}, {}, scores.argmax(-1), scores, {0: [name]})
    classes = (name, f"{name}2", "walk")
    labels = torch.tensor([0, 1, 2, 0])
    write_result(Result(outcome, run, f"{name}-xsub", {}, labels, [name] * 4, classes), "knn")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 4 and {path.parent for path in files} == {run / "results"}
    assert all(path.name.isprintable() for path in files)
    said = capsys.readouterr().out
    assert said.endswith("\n") and said[:-1].isprintable()
    [result] = (run / "results").glob("*.json")
    assert list(json.loads(result.read_text())["per_class"]) == list(classes)


def test_pictures_take_any_name_and_no_formula(tmp_path: Path) -> None:
    names = ["$\\frac{$", "$a^$", "\x1b[1m", "x" * 5000]
    picture = confusion_figure(torch.eye(4).long(), names, title="$\\frac{$ \x1b")
    save_figure(picture, tmp_path / "c.png")
    assert imread(tmp_path / "c.png").shape[1] < 2000
    assert plotted("$a$\x1b") == r"\$a\$\x1b"
    clip = synthetic_clip(13, 0, 1, 1)[:, :32]
    masked = np.zeros((len(clip), 8, 25), dtype=bool)
    save_figure(token_figure(masked_tokens(clip, masked, NTU25, "$\\frac{$")), tmp_path / "m.png")


def test_the_most_classes_that_a_store_may_have_can_be_scored(tmp_path: Path) -> None:
    labels = torch.arange(MAX_CLASSES)
    matrix = confusion_matrix(labels, labels.flip(0), MAX_CLASSES)
    assert matrix.numel() * len("0, ") < RESULT_BYTES, "and their result be read"
    assert matrix.nbytes <= 2**27 and matrix.sum() == MAX_CLASSES
    names = [f"class {i}" for i in range(MAX_CLASSES)]
    save_figure(confusion_figure(matrix, names, "t"), tmp_path / "c.png")
    assert max(imread(tmp_path / "c.png").shape) < 3000


def record(run: Path, text: str) -> None:
    run.mkdir(exist_ok=True)
    (run / "data.json").write_text(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("[]", "not a mapping"),
        ("{}", "has no store"),
        ('{"store": 1, "fingerprint": null, "split": "a"}', "has 1 as store; expected str"),
        ('{"store": "a", "fingerprint": [], "split": "a"}', "expected str or null"),
        ('{"store": "a", "fingerprint": null}', "has no split"),
        ('{"store": NaN}', "NaN is no number"),
    ],
)
def test_a_record_of_data_is_checked(tmp_path: Path, text: str, reason: str) -> None:
    record(tmp_path / "run", text)
    with pytest.raises(InputError, match=reason):
        data_record(tmp_path / "run")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", [kind for kind in ODD if kind != "empty"])
def test_records_and_lists_are_regular_files(tmp_path: Path, kind: str) -> None:
    put_odd(kind, tmp_path / "data.json")
    with pytest.raises(InputError, match=r"data\.json"):
        data_record(tmp_path)
    put_odd(kind, tmp_path / "train_ids.txt")
    with pytest.raises(InputError, match=r"train_ids\.txt"):
        clips_seen_in_training(tmp_path, None, np.arange(2))  # type: ignore[arg-type]


@pytest.mark.parametrize(("key", "value"), [("depth", 10**8), ("width", 2**40), ("heads", 0)])
def test_a_run_that_no_machine_could_build_is_refused(tmp_path: Path, key: str, value: int) -> None:
    config = replace(TrainConfig(), model={key: value})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    with pytest.raises(InputError, match=rf"^model.{key}: {value}; give"):
        read_run(tmp_path)


def member(run: Path, result: dict[str, Any], arrays: dict[str, Any]) -> Path:
    (run / "results").mkdir(parents=True)
    (run / "results" / "finetune-x.json").write_text(json.dumps(result))
    np.savez(run / "results" / "finetune-x.scores.npz", **arrays)
    return run


def good() -> tuple[dict[str, Any], dict[str, Any]]:
    keys = ("store", "store_fingerprint", "split", "device", "torch", "encoder", "stream")
    result: dict[str, Any] = dict.fromkeys(keys, "x")
    result |= {"top1": 50.0, "test_clips": 4, "recipe": {}, "weights": None}
    result["per_class"] = {"a": 1.0, "b": 2.0}
    scores = np.random.default_rng(0).random((1, 4, 2)).astype(np.float32)
    return result, {
        "scores": scores,
        "labels": np.array([0, 1, 0, 1]),
        "names": np.array(["c"] * 4),
    }


@pytest.mark.parametrize(
    ("part", "key", "value", "reason"),
    [
        ("result", "top1", "high", "has 'high' as top1; expected float"),
        ("result", "top1", True, "has True as top1"),
        ("result", "per_class", [1, 2], "expected dict"),
        ("result", "per_class", {"a": 1}, "has other classes than the 2"),
        ("result", "store", None, "expected str"),
        ("arrays", "scores", np.zeros((4, 2), np.float32), "has scores"),
        ("arrays", "scores", np.zeros((0, 4, 2), np.float32), "has scores"),
        ("arrays", "scores", np.zeros((1, 4, 2), np.int64), "has scores"),
        ("arrays", "scores", np.full((1, 4, 2), np.nan, np.float32), "are NaN"),
        ("arrays", "labels", np.array([0, 1, 0, 2]), "has other classes"),
        ("arrays", "labels", np.array([0, 1, 0, -1]), "has other classes"),
        ("arrays", "labels", np.array([0, 1, 0]), "has labels"),
        ("arrays", "names", np.array(["c"] * 3), "and names"),
        ("arrays", "names", np.arange(4), "text"),
        ("arrays", "scores", np.zeros((1, 4, 3), np.float32), "other classes"),
    ],
)
def test_a_member_of_an_ensemble_is_checked(
    tmp_path: Path, part: str, key: str, value: object, reason: str
) -> None:
    first, (result, arrays) = member(tmp_path / "a", *good()), good()
    {"result": result, "arrays": arrays}[part][key] = value
    second = member(tmp_path / "b", result, arrays)
    with pytest.raises(InputError, match=reason):
        run_ensemble(EnsembleRequest((first, second)))


def test_saved_scores_may_be_as_large_as_real_ones_and_no_bomb(tmp_path: Path) -> None:
    seeds, xset_clips, classes, float32 = 10, 59_477, 120, 4
    assert seeds * xset_clips * classes * float32 <= SCORES_BYTES
    result, arrays = good()
    run = member(tmp_path / "a", result, arrays)
    arrays["scores"] = np.zeros((1, 4, 5_000_000), np.float32)
    np.savez_compressed(run / "results" / "finetune-x.scores.npz", **arrays)
    with pytest.raises(InputError, match="scores grows from"):
        run_ensemble(EnsembleRequest((run, run)))


def test_members_have_the_same_labels(tmp_path: Path) -> None:
    first, (result, arrays) = member(tmp_path / "a", *good()), good()
    arrays["labels"] = arrays["labels"][::-1]
    second = member(tmp_path / "b", result, arrays)
    with pytest.raises(InputError, match="has other labels than the first"):
        run_ensemble(EnsembleRequest((first, second)))
    assert run_ensemble(EnsembleRequest((first, first))).outcome.figures["top1"] in (0, 25, 50, 75)


def test_the_name_of_a_result_is_no_pattern_and_no_path(tmp_path: Path) -> None:
    runs = tuple(member(tmp_path / name, *good()) for name in "ab")
    for of in ("*", "fine?une", "../results/finetune", "[f]inetune", ""):
        with pytest.raises(InputError, match=r"^of: "):
            run_ensemble(EnsembleRequest(runs, of))
