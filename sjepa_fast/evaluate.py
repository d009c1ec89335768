"""`python -m sjepa_fast.evaluate {knn,linear} RUN`: score a run's encoder on a store."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

from sjepa_fast import cli
from sjepa_fast.build import build_model
from sjepa_fast.config import DataConfig, TrainConfig
from sjepa_fast.config_io import read_config
from sjepa_fast.data.loader import ResidentClips, load_resident
from sjepa_fast.data.store import Store, open_store
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.features import Pool, clip_features, raw_features, scale_features
from sjepa_fast.evaluation.knn import knn_accuracy
from sjepa_fast.evaluation.linear import linear_probe
from sjepa_fast.evaluation.logistic import fit_logistic
from sjepa_fast.evaluation.metrics import confusion_matrix, per_class_accuracy
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


@dataclass(frozen=True)
class EvaluateConfig:
    """Score the encoder of a run: kNN or a linear probe on frozen features."""

    protocol: Annotated[Literal["knn", "linear"], tyro.conf.Positional]
    """knn: cosine nearest neighbours; linear: a linear classifier on frozen features."""
    run: Annotated[Path, tyro.conf.Positional]
    """Run folder."""
    data: EvalData = EvalData()
    encoder: Literal["target", "view", "random", "raw"] = "target"
    """target: the EMA encoder, as in the paper; view; random: the run's own initialisation;
    raw: no encoder, the coordinates themselves."""
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
    encoder = model.view_encoder if request.encoder == "view" else model.target_encoder
    parts = [
        clip_features(encoder, clips, ids, config, dtype, (pool,))[pool]
        for ids in (train_ids, test_ids)
    ]
    return parts[0], parts[1]


def describe(
    request: EvaluateConfig, config: TrainConfig, data: DataConfig, store: Store
) -> dict[str, object]:
    """State the conditions of a result: weights, data, split, device."""
    checkpoint = trained_checkpoint(request)
    weights = None
    if checkpoint is not None:
        content = (checkpoint.path / "model.safetensors").read_bytes()
        weights = {"step": checkpoint.step, "sha256": hashlib.sha256(content).hexdigest()}
    return {
        "protocol": request.protocol,
        "encoder": request.encoder,
        "weights": weights,
        "training_seed": config.seed,
        "store": store.name,
        "store_fingerprint": store.fingerprint,
        "split": data.split,
        "torch": torch.__version__,
    }
