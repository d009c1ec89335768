"""N-UCLA from the raw file to the result files, with the public commands and a short training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sjepa_fast import evaluate
from sjepa_fast.data.store import open_store


@pytest.fixture
def run(nucla: Path, nucla_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(nucla)
    return nucla_run


def score(run: Path, name: str, *arguments: str) -> dict[str, Any]:
    assert evaluate.run([arguments[0], str(run), *arguments[1:]]) == 0
    found: dict[str, Any] = json.loads((run / "results" / f"{name}.json").read_text())
    assert (run / "results" / f"{name}.png").stat().st_size > 10_000
    return found


@pytest.mark.slow
def test_frozen_protocols_reach_their_floors(run: Path) -> None:
    """The floors are margins below what many runs of the recipe gave, without any training."""
    linear = score(
        run,
        "linear-random-joint-nucla-xview",
        *("linear", "--encoder", "random", "--pool", "joint", "--no-baselines"),
    )
    assert linear["train_clips"] == 1020 and linear["test_clips"] == 464
    assert linear["top1"] >= 66, "whitened tokens of a random encoder"
    raw = score(run, "knn-raw-nucla-xview", "knn", "--encoder", "raw")
    assert raw["top1_k1"] >= 62, "aligned coordinates"
    half = score(run, "knn-raw-pca-nucla-xview", "knn", "--encoder", "raw", "--scaling", "pca")
    assert half["features"] == 1920 and half["top1_k1"] > raw["top1_k1"] + 6
    target = score(run, "knn-target-full-nucla-xview", "knn", "--pool", "full")
    assert target["weights"]["step"] == 3 and target["store"] == "nucla"
    assert target["beside"]["raw"]["headline"] == raw["top1_k1"]
    assert list(target["per_class"]) == list(open_store(Path("stores/nucla")).class_names)


@pytest.mark.slow
def test_ten_percent_of_the_labels_beat_chance_within_forty_steps(run: Path) -> None:
    short = ("--recipe.length", "40", "--recipe.warmup", "4", "--recipe.score-every", "40")
    found = score(
        run,
        "semi0.1-balanced-target-nucla-xview",
        *("semi", "--ratio", "0.1", "--balanced", "--seeds", "3", *short),
    )
    assert found["recipe"]["labelled_clips"] == 102 and found["recipe"]["name"] == "strong"
    assert found["top1"] > 30, "ten classes"
    ids = (run / "results" / "semi0.1-balanced-target-nucla-xview-s3.ids.txt").read_text().split()
    store = open_store(Path("stores/nucla"))
    labels = store.labels[np.isin(store.names, ids)]
    counts = np.bincount(labels, minlength=10)
    assert len(ids) == 102 and counts.max() - counts.min() <= 1
