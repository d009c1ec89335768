"""`python -m sjepa_fast.evaluate {knn,linear} RUN`: score a run's encoder on a store."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from sjepa_fast import cli
from sjepa_fast.build import build_model
from sjepa_fast.config import TrainConfig
from sjepa_fast.config_io import read_config
from sjepa_fast.data.loader import ResidentClips, load_resident
from sjepa_fast.data.store import Store, open_store
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.features import Pool, clip_features, raw_features, scale_features
from sjepa_fast.evaluation.knn import knn_predict, standardize_features
from sjepa_fast.evaluation.linear import linear_probe
from sjepa_fast.evaluation.logistic import fit_logistic
from sjepa_fast.evaluation.metrics import accuracy, confusion_matrix, per_class_accuracy
from sjepa_fast.runtime.checkpoint import Checkpoint, latest_checkpoint, load_weights
from sjepa_fast.runtime.device import pick_device, pick_dtype
from sjepa_fast.runtime.files import write_json
from sjepa_fast.viz.confusion import plot_confusion


@dataclass(frozen=True)
class EvalData:
    """Which clips to score on."""

    root: Path | None = None
    """Store; default: the one the run was trained on."""
    split: str | None = None
    """Split of the store; default: the run's."""
    bodies: int | None = None
    """Persons a clip; default: the run's."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Score the encoder of a run: kNN or a linear probe on frozen features."""

    protocol: Annotated[Literal["knn", "linear"], tyro.conf.Positional]
    """knn: cosine nearest neighbours; linear: a linear classifier on frozen features."""
    run: Annotated[Path, tyro.conf.Positional]
    """Run folder."""
    data: EvalData = EvalData()
    encoder: Literal["target", "view", "random", "raw"] = "target"
    """target: the EMA encoder, or the view encoder where there is no other; view; random: the
    run's own initialisation; raw: no encoder, the coordinates themselves."""
    pool: Pool | None = None
    """Pooling of tokens; default: mean for linear, the run's online pooling for knn."""
    k: tuple[int, ...] = (1, 2, 5, 10)
    """Neighbours, for knn; the first is the headline."""
    seed: int = 0
    """Seed of the sgd probe."""


def open_run(request: EvaluateConfig) -> tuple[TrainConfig, Store]:
    """Read the run's configuration, with the data the request asks for, and open the store."""
    file = request.run / "config.yaml"
    if not file.is_file():
        raise InputError("run", f"{request.run} is not a run folder", "name a folder with a run")
    config = read_config(file)
    data = dataclasses.replace(
        config.data,
        root=request.data.root or config.data.root,
        split=request.data.split or config.data.split,
        bodies=request.data.bodies or config.data.bodies,
    )
    if data.root is None:
        raise InputError("data.root", "not given", "add --data.root STORE")
    return dataclasses.replace(config, data=data), open_store(data.root)


def trained_checkpoint(request: EvaluateConfig) -> Checkpoint | None:
    """Return the checkpoint whose weights are scored, or None for random and raw."""
    if request.encoder in ("random", "raw"):
        return None
    return latest_checkpoint(request.run)


def extract(
    request: EvaluateConfig,
    config: TrainConfig,
    clips: ResidentClips,
    train_ids: Tensor,
    test_ids: Tensor,
    pool: Pool,
) -> tuple[Tensor, Tensor]:
    """Return training and test features of the encoder that the request names."""
    if request.encoder == "raw":
        return raw_features(clips, train_ids, config), raw_features(clips, test_ids, config)
    device = clips.joints_RVC.device
    dtype, _ = pick_dtype(config.runtime, device)
    # The whitening is part of the weights; for a random encoder it is fitted as training would.
    model = build_model(config, clips, train_ids, device).eval()
    checkpoint = trained_checkpoint(request)
    if checkpoint is not None:
        load_weights(checkpoint, model)
    encoder = model.view_encoder if request.encoder == "view" else model.eval_encoder
    parts = [
        clip_features(encoder, clips, ids, config, dtype, (pool,))[pool]
        for ids in (train_ids, test_ids)
    ]
    return parts[0], parts[1]


def describe(
    request: EvaluateConfig, config: TrainConfig, store: Store, pool: Pool, device: torch.device
) -> dict[str, object]:
    """State the conditions of a result: weights, data, split, device."""
    weights = None
    checkpoint = trained_checkpoint(request)
    if checkpoint is not None:
        content = (checkpoint.path / "model.safetensors").read_bytes()
        weights = {"step": checkpoint.step, "sha256": hashlib.sha256(content).hexdigest()}
    return {
        "protocol": request.protocol,
        "encoder": request.encoder,
        "weights": weights,
        "pool": None if request.encoder == "raw" else pool,
        "training_seed": config.seed,
        "trained_on": json.loads((request.run / "data.json").read_text()),
        "store": store.name,
        "store_fingerprint": store.fingerprint,
        "split": config.data.split,
        "device": str(device),
        "torch": torch.__version__,
    }


def clips_seen_in_training(run: Path, store: Store, ids: np.ndarray) -> int | None:
    """Count the clips, by name, that the run was pre-trained on; None if it does not know."""
    seen = set((run / "train_ids.txt").read_text().splitlines())
    if not seen:
        return None
    return sum(str(store.names[i]) in seen for i in ids)


def score_knn(
    request: EvaluateConfig,
    config: TrainConfig,
    features: tuple[Tensor, Tensor],
    labels: tuple[Tensor, Tensor],
    pool: Pool,
) -> tuple[dict[str, object], Tensor]:
    """Cosine kNN; returns the figures and the predictions of the first k."""
    kind = "raw" if request.encoder == "raw" else pool
    train, test = scale_features(*features, config.eval.knn_scaling, kind)
    guesses = knn_predict(train, labels[0], test, request.k)
    figures = {f"top1_k{k}": accuracy(guess, labels[1]) for k, guess in guesses.items()}
    recipe = {"metric": "cosine", "scaling": config.eval.knn_scaling}
    return {**figures, "recipe": recipe}, guesses[request.k[0]]


def score_linear(
    request: EvaluateConfig,
    config: TrainConfig,
    features: tuple[Tensor, Tensor],
    labels: tuple[Tensor, Tensor],
    classes: int,
    pool: Pool,
) -> tuple[dict[str, object], Tensor]:
    """Linear probe by the recipe of the run; returns the figures and the predictions."""
    if config.eval.linear == "logistic":
        # Our choice for small sets: strength by feature count, fixed beforehand.
        c = 0.1 if pool == "mean" and request.encoder != "raw" else 0.01
        train, test = standardize_features(*features)
        guess = fit_logistic(train, labels[0], classes, c).predict(test)
        recipe: dict[str, object] = {"kind": "L2 logistic regression", "C": c}
        return {"top1": accuracy(guess, labels[1]), "recipe": recipe}, guess
    result = linear_probe(
        lambda _: features[0], labels[0], features[1], labels[1], classes, seed=request.seed
    )[0]
    recipe = {"kind": "sgd", "lr": result.lr, "epochs": 100, "seed": request.seed, "crop": "eval"}
    return {
        "top1": result.last,
        "top1_best_epoch": result.best,
        "recipe": recipe,
    }, result.predicted_Q


def evaluate(request: EvaluateConfig) -> int:
    """Score, print one line, and write the result with its conditions and a confusion picture.

    Args:
        request: What to score, on what.

    Returns:
        0.

    Raises:
        InputError: If the run, the store or the split does not fit.
    """
    if not request.k or min(request.k) < 1:
        raise InputError("k", request.k, "count at least 1 neighbour")
    config, store = open_run(request)
    device = pick_device(config.runtime, 0)
    clips = load_resident(store, config.data, device)
    train_ids = torch.from_numpy(store.ids(config.data.split, "train")).to(device)
    test_ids = torch.from_numpy(store.ids(config.data.split, "test")).to(device)
    if len(test_ids) == 0:
        raise InputError("data.split", f"{config.data.split} has no test clip", "use another split")
    default: Pool = config.eval.online_pool if request.protocol == "knn" else "mean"
    pool = request.pool or default
    features = extract(request, config, clips, train_ids, test_ids, pool)
    labels = (clips.labels_N[train_ids], clips.labels_N[test_ids])
    classes = len(store.class_names)
    if request.protocol == "knn":
        figures, guess = score_knn(request, config, features, labels, pool)
    else:
        figures, guess = score_linear(request, config, features, labels, classes, pool)
    matrix = confusion_matrix(guess, labels[1], classes)
    weights_saw = clips_seen_in_training(request.run, store, test_ids.cpu().numpy())
    result = {
        **describe(request, config, store, pool, device),
        "train_clips": len(train_ids),
        "test_clips": len(test_ids),
        "test_clips_seen_in_training": weights_saw,
        **figures,
        "per_class": dict(zip(store.class_names, per_class_accuracy(matrix), strict=True)),
        "confusion": matrix.tolist(),
    }
    kind = "raw" if request.encoder == "raw" else f"{request.encoder}-{pool}"
    name = f"{request.protocol}-{kind}-{store.name}-{config.data.split}"
    folder = request.run / "results"
    folder.mkdir(exist_ok=True)
    write_json(folder / f"{name}.json", result)
    headline = accuracy(guess, labels[1])
    title = f"{request.protocol}, {kind}, {store.name} {config.data.split}: {headline:.1f} %"
    plot_confusion(matrix, store.class_names, folder / f"{name}.png", title=title)
    if weights_saw:
        print(f"note: {weights_saw} of the test clips were in the pre-training set of this run")
    shown = ", ".join(f"{k} {v:.1f}" for k, v in figures.items() if isinstance(v, float))
    print(f"{name}: {shown} ({len(test_ids)} test clips) -> {folder / name}.json")
    return 0


def main(argv: list[str] | None = None) -> None:
    """Console entry: exit with 0, 1 or 2 (usage)."""
    arguments = sys.argv[1:] if argv is None else argv
    cli.run_main(lambda: evaluate(cli.parse(EvaluateConfig, arguments, prog="sjepa_fast.evaluate")))


if __name__ == "__main__":
    main()
