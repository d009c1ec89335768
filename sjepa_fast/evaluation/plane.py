# SPDX-License-Identifier: Apache-2.0
"""Features of clips as points on a plane: by PCA, t-SNE or UMAP.

Shapes: N clips, D numbers of each.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.extras import require

Points = NDArray[np.float32]


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
    require("method", "tsne", "sklearn")
    from sklearn.manifold import TSNE

    # The default perplexity wants more than three times as many clips.
    perplexity = min(30.0, (len(features_ND) - 1) / 3)
    model = TSNE(2, metric="cosine", init="pca", perplexity=perplexity, random_state=seed)
    return model.fit_transform(features_ND), ("t-SNE 1", "t-SNE 2")


def umap(features_ND: Points, seed: int) -> tuple[Points, tuple[str, str]]:
    """Project by UMAP with cosine distances; the axes have no meaning of their own."""
    require("method", "umap", "umap")
    from umap import UMAP

    neighbours = min(15, len(features_ND) - 1)
    model = UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1)
    return model.fit_transform(features_ND), ("UMAP 1", "UMAP 2")


METHODS: dict[str, Callable[[Points, int], tuple[Points, tuple[str, str]]]] = {
    "pca": pca,
    "tsne": tsne,
    "umap": umap,
}
