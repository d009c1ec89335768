# SPDX-License-Identifier: Apache-2.0
"""Test clips beside the training clips whose features are nearest."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.nn.functional import normalize

from sjepa_fast.config.schema import Pool, Scaling
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.frozen import cosine_features
from sjepa_fast.evaluation.protocols.retrieval import RetrievalRequest
from sjepa_fast.evaluation.request import Request
from sjepa_fast.evaluation.subject import open_subject
from sjepa_fast.pictures.scene import called, check_rate, clip_ids, crop_of
from sjepa_fast.viz.clips import Track, clip_movie, clip_strips
from sjepa_fast.viz.figure import Movie
from sjepa_fast.viz.pose import turned

RIGHT, WRONG = "#1b7837", "#b2182b"


@dataclass(frozen=True)
class RetrievalPictureRequest(Request):
    """Clips beside the training clips that are nearest by the cosine of features."""

    out: Path | None = None
    """File to write: .png, .svg, .pdf, or moving .gif or .html; default: retrieval.png in the
    run."""
    clip: tuple[str, ...] = ()
    """Names of the clips that ask; default: the first test clip."""
    neighbours: int = 4
    """Training clips beside each; the clip itself is none of them."""
    pool: Pool | None = None
    """Pooling of tokens; default: the run's online pooling."""
    scaling: Scaling | None = None
    """Scaling of features; default: the run's eval.knn_scaling."""
    turn: float = 0.0
    """Degrees by which the bodies are turned about the vertical; 0 is the view from the front."""
    rate: float = 15.0
    """Frames per second of a GIF or an HTML page."""


def draw_retrieval(request: RetrievalPictureRequest, moving: bool) -> Figure | Movie:
    """Draw each clip and its nearest ones; their titles are green where the class is the same."""
    check_rate(request.rate)
    subject = open_subject(request, labels=False)
    store, count = subject.store, request.neighbours
    if not 1 <= count < len(subject.train_ids):
        raise InputError("neighbours", count, f"give 1 to {len(subject.train_ids) - 1}")
    asking = clip_ids(store, request.clip) or subject.test_ids[:1].tolist()
    if not asking:
        raise InputError("clip", "not given", f"{subject.config.data.split} has no test clip")
    asked = RetrievalRequest(
        run=request.run, encoder=request.encoder, pool=request.pool, scaling=request.scaling
    ).settled(subject.config)
    ids = torch.tensor(asking, device=subject.device)
    gallery, query, _, _ = cosine_features(dataclasses.replace(subject, test_ids=ids), asked)
    likeness_QN = normalize(query, dim=1) @ normalize(gallery, dim=1).T
    likeness_QN[ids[:, None] == subject.train_ids] = -torch.inf
    values_QK, places_QK = likeness_QN.topk(count)
    tracks: list[Track] = []
    for index, values, places in zip(asking, values_QK, places_QK, strict=True):
        found = subject.train_ids[places].tolist()
        crops = [
            turned(c, request.turn) for c in crop_of(subject.clips, [index, *found], subject.config)
        ]
        tracks.append(Track(f"Asked: {called(store, index)}", crops[0]))
        label = int(store.labels[index])
        for at, value, crop in zip(found, values.tolist(), crops[1:], strict=True):
            color = "black"
            if label >= 0:
                color = RIGHT if int(store.labels[at]) == label else WRONG
            tracks.append(Track(f"{value:.2f}: {called(store, at)}", crop, color=color))
    title = f"Nearest training clips of {store.name} by cosine, {request.encoder} encoder"
    if request.encoder == "raw":
        title = f"Nearest training clips of {store.name} by cosine of raw coordinates"
    if moving:
        return clip_movie(tracks, store.layout, title, rate=request.rate, columns=1 + count)
    return clip_strips(tracks, store.layout, title)
