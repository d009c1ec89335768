# SPDX-License-Identifier: Apache-2.0
"""What a model is, wherever it comes from: configuration, joints, weights and their record."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.embedding.results import run_results
from sjepa_fast.evaluation.subject import (
    data_record,
    encoder_weights,
    mapped_weights,
    trained_layout,
)
from sjepa_fast.models.encoder import SkeletonTransformer
from sjepa_fast.run_folder import read_run
from sjepa_fast.runtime.checkpoint import latest_checkpoint
from sjepa_fast.runtime.fitting import check_tensors
from sjepa_fast.runtime.logging import recorded_dtype
from sjepa_fast.runtime.manifest import WEIGHTS, read_manifest
from sjepa_fast.skeletons import SkeletonLayout

_TRAINED_ON = ("store", "fingerprint", "split", "continued_from")


@dataclass(frozen=True)
class Content:
    """An encoder with all that belongs to it; `path` is the file that its weights are from."""

    origin: str  # what was loaded, for people
    path: Path
    config: TrainConfig
    layout: SkeletonLayout  # joints that it was trained on
    weights: dict[str, Tensor]
    encoder: str  # target or view
    step: int
    dtype: str  # precision of the training, float32 or bfloat16
    trained_on: dict[str, Any]  # store, fingerprint and split, and the model that was continued
    results: list[dict[str, Any]] = field(default_factory=list)  # scores with their conditions


def fitting_encoder(content: Content, layout: SkeletonLayout) -> SkeletonTransformer:
    """Return the encoder for the joints of a layout, in evaluation mode; weights are shared.

    Raises InputError if a joint has no counterpart, or the weights are not the configuration's.
    """
    weights = mapped_weights(content.weights, content.layout, layout)
    # Nothing is allocated at the word of a configuration.
    with torch.device("meta"):
        encoder = SkeletonTransformer.of(content.config, layout.num_joints)
    check_tensors(content.path, weights, encoder.state_dict())
    encoder.load_state_dict(weights, assign=True)
    return encoder.eval().requires_grad_(False)


def run_content(run: Path, encoder: str) -> Content:
    """Open a run's newest whole checkpoint; `encoder` is target or view.

    Raises InputError if the folder holds no run that can be used.
    """
    config = read_run(run)
    checkpoint = latest_checkpoint(run)
    manifest = read_manifest(checkpoint.path)
    record = data_record(run)
    dtype = recorded_dtype(run)
    return Content(
        origin=run.name,
        path=checkpoint.path / WEIGHTS,
        config=config,
        layout=trained_layout(run, config.data.root),
        weights=encoder_weights(checkpoint, encoder),
        encoder=encoder,
        step=manifest.step,
        dtype="bfloat16" if dtype == torch.bfloat16 else "float32",
        trained_on={key: record[key] for key in _TRAINED_ON if key in record},
        results=run_results(run, encoder, manifest.files[WEIGHTS].sha256),
    )
