"""What runs leave and later commands read: records, scores, results, layouts; and their names."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sjepa_fast import evaluate
from sjepa_fast.ablate import measured
from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.evaluation.outcome import Outcome, Result
from sjepa_fast.evaluation.protocols.ensemble import EnsembleRequest, run_ensemble
from sjepa_fast.evaluation.subject import clips_seen_in_training, data_record, trained_layout
from sjepa_fast.joint_map import map_joints
from sjepa_fast.opening import read_json
from sjepa_fast.runtime.checkpoint import Contents, write_checkpoint
from sjepa_fast.runtime.logging import read_metrics, recorded_dtype
from sjepa_fast.skeletons import COCO17, NTU25, SkeletonLayout
from sjepa_fast.viz import confusion, figure
from sjepa_fast.viz.figure import plotted
from tests.fuzz.mutate import (
    TEXTS,
    lie_about_size,
    mutate_bytes,
    mutate_json,
    mutate_npy,
    mutate_text,
    npy_bytes,
    put,
    zip_bytes,
)
from tests.fuzz.target import Target

CLASSES, CLIPS, SEEDS = 3, 4, 2


def _record(rng: random.Random, folder: Path) -> Path:
    record = {"store": "toy", "fingerprint": "0" * 64, "split": "xsub", "layout": NTU25.to_dict()}
    put(rng, folder / "data.json", mutate_json(rng, record))
    environment = {"dtype": "float32", "torch": "2.13.0", "threads": 2}
    put(rng, folder / "env.json", mutate_json(rng, environment))
    put(rng, folder / "train_ids.txt", mutate_text(rng, "a\nb\nc\n"))
    if rng.random() < 0.01:
        (folder / "train_ids.txt").unlink(missing_ok=True)
        (folder / "train_ids.txt").write_text("x\n" * 10**6)
    return folder


class _NoStore:
    name = "toy"
    names = np.array(["a", "b"])


def _read_record(run: Path) -> None:
    data_record(run)
    layout = trained_layout(run, None)
    map_joints(NTU25, layout)
    recorded_dtype(run)
    clips_seen_in_training(run, _NoStore(), np.arange(2))  # type: ignore[arg-type]


@functools.cache
def _score() -> dict[str, Any]:
    result: dict[str, Any] = dict.fromkeys(("store", "store_fingerprint", "split"), "toy")
    result |= dict.fromkeys(("device", "torch", "encoder", "stream"), "cpu")
    result |= {"top1": 50.0, "top1_per_seed": [50.0, 50.0], "test_clips": CLIPS, "recipe": {"a": 1}}
    result |= {"weights": {"step": 1, "sha256": "0"}, "confusion": [[1, 0, 0]] * CLASSES}
    return result | {"per_class": {"walk": 1.0, "run": None, "sit": 0.0}}


@functools.cache
def _scores() -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(0)
    return {
        "scores": numbers.standard_normal((SEEDS, CLIPS, CLASSES)).astype(np.float32),
        "labels": numbers.integers(0, CLASSES, CLIPS),
        "names": np.array([f"clip{i}" for i in range(CLIPS)]),
    }


def _member(rng: random.Random, run: Path, name: str, changed: bool) -> None:
    folder = run / "results"
    folder.mkdir(parents=True)
    kind = rng.randrange(5) if changed else -1
    score = mutate_json(rng, _score()) if kind in (0, 1) else json.dumps(_score()).encode()
    put(rng, folder / f"{name}.json", score)
    members = {f"{key}.npy": npy_bytes(array) for key, array in _scores().items()}
    if kind in (2, 3):
        key = rng.choice(list(_scores()))
        members[f"{key}.npy"] = mutate_npy(rng, _scores()[key])
    if kind == 3:
        members.pop(rng.choice(list(members)))
    archive = zip_bytes(members, compress=rng.random() < 0.5)
    if kind == 4:
        archive = rng.choice((mutate_bytes, lie_about_size))(rng, archive)
    put(rng, folder / f"{name}.scores.npz", archive)


def _ensemble(rng: random.Random, folder: Path) -> EnsembleRequest:
    runs = (folder / "a", folder / "b")
    bad = rng.randrange(2)
    for place, run in enumerate(runs):
        _member(rng, run, "finetune-target-toy-xsub", place == bad)
    of = rng.choice(TEXTS).replace("\0", "") if rng.random() < 0.02 else "finetune"
    return EnsembleRequest(runs, of)


def _run_ensemble(request: EnsembleRequest) -> None:
    evaluate.write_result(run_ensemble(request), "ensemble")


def _no_picture(matrix: Any, names: Any, title: str) -> None:
    """In place of the confusion matrix, which takes a tenth of a second; tested by itself."""
    for name in (*names, title):
        plotted(name)


def _warm_evaluate(folder: Path) -> None:
    confusion.confusion_figure = _no_picture
    figure.save_figure = lambda _, out: out.write_bytes(b"")
    request = EnsembleRequest((folder / "a", folder / "b"))
    for run in request.runs:
        _member(random.Random(1), run, "finetune-target-toy-xsub", False)
    _run_ensemble(request)


def _named(rng: random.Random, folder: Path) -> Result:
    """A result whose names are all a stranger's."""

    def name() -> str:
        return "".join(rng.choice((*TEXTS, "toy")) for _ in range(rng.choice((1, 1, 2))))

    scores = torch.zeros(1, CLIPS, CLASSES)
    outcome = Outcome(name(), {name(): 1.0}, {name(): name()}, scores.argmax(-1), scores)
    outcome.ids[0] = [name()]
    labels = torch.zeros(CLIPS, dtype=torch.int64)
    classes = tuple(f"{name()}{i}" for i in range(CLASSES))
    clips = [name() for _ in range(CLIPS)]
    return Result(outcome, folder, f"{name()}-{name()}", {name(): name()}, labels, clips, classes)


def _write(result: Result) -> None:
    evaluate.write_result(result, "knn")
    for path in result.run.rglob("*"):
        assert path.name.isprintable() and len(path.name.encode()) < 200, path


def _run(rng: random.Random, folder: Path) -> TrainConfig:
    run = folder / "run"
    (run / "results").mkdir(parents=True)
    score = {"pool": "mean", "before": 40.0, "after": 60.5}
    put(rng, run / "results" / "knn-before-after.json", mutate_json(rng, score))
    row = {"step": 1, "loss": 2.0, "ms_per_step": 3.0, "effective_rank": 7.0}
    rows = "".join(json.dumps({**row, "step": step}) + "\n" for step in range(4))
    put(rng, run / "metrics.jsonl", mutate_text(rng, rows) if rng.random() < 0.5 else rows.encode())
    write_checkpoint(run, Contents(4, {"w": torch.ones(1)}, None, []), keep=1)
    return TrainConfig(run=run)


def _measure(config: TrainConfig) -> None:
    read_metrics(config.run)
    measured(config)


def _layout(rng: random.Random, folder: Path) -> Path:
    layout = rng.choice((NTU25, COCO17)).to_dict()
    return put(rng, folder / "layout.json", mutate_json(rng, layout))


def _read_layout(path: Path) -> None:
    layout = SkeletonLayout.from_dict(read_json("layout", path))
    assert len(layout.flip_permutation()) == layout.num_joints == len(layout.bones) + 1
    map_joints(NTU25, layout)


TARGETS = (
    Target("records of a run", _record, _read_record),
    Target("ensemble", _ensemble, _run_ensemble, _warm_evaluate),
    Target("names of results", _named, _write, _warm_evaluate),
    Target("ablation results", _run, _measure),
    Target("layout", _layout, _read_layout),
)
