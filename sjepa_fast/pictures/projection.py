# SPDX-License-Identifier: Apache-2.0
"""The picture of clips on a plane, by their features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from matplotlib.figure import Figure

from sjepa_fast.config.schema import Pool
from sjepa_fast.config.validation import validate_pool
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.features import raw_features
from sjepa_fast.evaluation.frozen import encoded
from sjepa_fast.evaluation.plane import METHODS
from sjepa_fast.evaluation.request import Request
from sjepa_fast.evaluation.subject import make_encoder, open_subject
from sjepa_fast.viz.projection import projection_figure


@dataclass(frozen=True)
class ProjectionRequest(Request):
    """Clips as points on a plane by their features, coloured by class."""

    out: Path | None = None
    """File to write: .png, .svg or .pdf; default: projection.png in the run."""
    method: Literal["pca", "tsne", "umap"] = "pca"
    """pca: the two axes of largest variance; tsne: t-SNE of scikit-learn; umap: umap-learn (both
    are in the extra viz)."""
    part: Literal["train", "test"] = "test"
    """Part of the split."""
    pool: Pool | None = None
    """Pooling of tokens; default: the run's online pooling."""
    clips: int = 2000
    """At most so many clips, evenly from the part."""
    seed: int = 0
    """Seed of t-SNE and UMAP."""


_NAMES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
LEAST_CLIPS = 4


def draw_projection(request: ProjectionRequest, _moving: bool) -> Figure:
    """Draw the features of clips on a plane; clips without a label are grey."""
    if request.clips < LEAST_CLIPS:
        raise InputError("clips", request.clips, f"give {LEAST_CLIPS} or more")
    subject = open_subject(request, labels=False)
    ids = subject.train_ids if request.part == "train" else subject.test_ids
    if len(ids) < LEAST_CLIPS:
        value = f"{subject.config.data.split} has {len(ids)} {request.part} clips"
        raise InputError("part", value, f"a map takes {LEAST_CLIPS}")
    chosen = torch.linspace(0, len(ids) - 1, min(request.clips, len(ids))).round().long()
    ids = ids[chosen.to(ids.device)]
    pool = request.pool or subject.config.eval.online_pool
    validate_pool("pool", pool, subject.config)
    if request.encoder == "raw":
        features, of = raw_features(subject.clips, ids, subject.config), "raw coordinates"
    else:
        network = make_encoder(subject, request.encoder, subject.fit_ids)
        features, of = encoded(subject, network, ids, pool), f"{request.encoder} encoder, {pool}"
    points, axis_names = METHODS[request.method](features.cpu().numpy(), request.seed)
    store, part = subject.store, request.part
    title = (
        f"{request.run.resolve().name}: {len(ids)} {part} clips of {store.name}, "
        f"{_NAMES[request.method]} of features ({of})"
    )
    labels = subject.labels(ids).cpu().numpy()
    return projection_figure(points, labels, store.class_names, title, axis_names)
