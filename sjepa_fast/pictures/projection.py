"""Features of clips on a plane: by PCA, t-SNE or UMAP.

Shapes: N clips, D numbers of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sjepa_fast.config.schema import Pool
from sjepa_fast.config.validation import validate_pool
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.features import raw_features
from sjepa_fast.evaluation.frozen import encoded
from sjepa_fast.evaluation.request import Request
from sjepa_fast.evaluation.subject import make_encoder, open_subject
from sjepa_fast.viz.projection import projection_figure

Points = NDArray[np.float32]


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


def pca(features_ND: Points, _seed: int) -> tuple[Points, tuple[str, str]]:
    """Project onto the two axes of largest variance; no library is needed.

    Returns (N, 2) and what the axes are called, with their share of the variance. The sign of an
    axis, which is free, makes the largest weight positive.
    """
    x = features_ND.astype(np.float64) - features_ND.mean(axis=0, dtype=np.float64)
    # Of the two products that have the axes, the one of clips with clips.
    square, axes = np.linalg.eigh(x @ x.T)
    top = np.argsort(square)[::-1][:2]
    points = axes[:, top] * np.sqrt(np.maximum(square[top], 0))
    points *= np.sign(points[np.abs(points).argmax(axis=0), [0, 1]])
    shares = 100 * square[top] / max(float(square.sum()), 1e-30)
    first, second = (
        f"axis {k + 1}: {share:.0f} % of the variance" for k, share in enumerate(shares)
    )
    return points.astype(np.float32), (first, second)


def tsne(features_ND: Points, seed: int) -> tuple[Points, tuple[str, str]]:
    """Project by t-SNE with cosine distances; the axes have no meaning of their own."""
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise _missing("tsne", "scikit-learn") from error
    # The default perplexity wants more than three times as many clips.
    perplexity = min(30.0, (len(features_ND) - 1) / 3)
    model = TSNE(2, metric="cosine", init="pca", perplexity=perplexity, random_state=seed)
    return model.fit_transform(features_ND), ("t-SNE 1", "t-SNE 2")


def umap(features_ND: Points, seed: int) -> tuple[Points, tuple[str, str]]:
    """Project by UMAP with cosine distances; the axes have no meaning of their own."""
    try:
        from umap import UMAP
    except ImportError as error:
        raise _missing("umap", "umap-learn") from error
    neighbours = min(15, len(features_ND) - 1)
    model = UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1)
    return model.fit_transform(features_ND), ("UMAP 1", "UMAP 2")


def _missing(method: str, package: str) -> InputError:
    fix = f"run: pip install {package} (or: pip install 'sjepa-fast[viz]'), or use --method pca"
    return InputError("method", f"{method} needs {package}, not installed here", fix)


METHODS: dict[str, Callable[[Points, int], tuple[Points, tuple[str, str]]]] = {
    "pca": pca,
    "tsne": tsne,
    "umap": umap,
}
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
