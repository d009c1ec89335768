# SPDX-License-Identifier: Apache-2.0
"""Confusion matrices: of a score that was written, or of nearest neighbours, scored now."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from sjepa_fast.errors import InputError, nearest
from sjepa_fast.evaluation.features import nearest_neighbour
from sjepa_fast.evaluation.metrics import accuracy, confusion_matrix
from sjepa_fast.evaluation.request import Request
from sjepa_fast.evaluation.saved import RESULT_BYTES
from sjepa_fast.evaluation.subject import make_encoder, open_subject
from sjepa_fast.opening import check_fields, read_json
from sjepa_fast.viz.confusion import confusion_figure

_FIELDS = {"per_class": (dict,), "confusion": (list,), "headline": (float,)}


@dataclass(frozen=True)
class ConfusionRequest(Request):
    """Which classes are taken for which: of nearest neighbours, or of a result that is written."""

    out: Path | None = None
    """File to write: .png, .svg or .pdf; default: confusion.png in the run."""
    result: str = ""
    """Name of a result, as `sjepa_fast.results` shows it, whatever encoder and data it is of;
    default: 1-NN of the encoder, scored now as at the end of training."""


def knn_figure(guess_Q: Tensor, labels_Q: Tensor, class_names: tuple[str, ...]) -> Figure:
    """Draw the confusion of nearest neighbours."""
    matrix = confusion_matrix(guess_Q, labels_Q, len(class_names))
    title = f"Nearest neighbour, {accuracy(guess_Q, labels_Q):.1f} % right"
    return confusion_figure(matrix, class_names, title)


def _of_result(run: Path, name: str) -> Figure:
    path = run / "results" / f"{name.removesuffix('.json')}.json"
    written = sorted(p.stem for p in path.parent.glob("*.json"))
    if path.stem not in written:
        fix = nearest(name, written) if written else "score it with sjepa_fast.evaluate first"
        raise InputError("result", f"{run} has no result {name}", fix)
    content: dict[str, Any] = read_json("result", path, RESULT_BYTES)
    check_fields("result", path, content, _FIELDS)
    names = tuple(content["per_class"])
    try:
        matrix = torch.tensor(content["confusion"], dtype=torch.int64)
    except (ValueError, TypeError, OverflowError):
        matrix = torch.zeros(0, dtype=torch.int64)
    if matrix.shape != (len(names), len(names)):
        raise InputError("result", f"{path} has no matrix of its classes", "score that again")
    return confusion_figure(matrix, names, f"{path.stem}: {content['headline']:.1f} % right")


def draw_confusion(request: ConfusionRequest, _moving: bool) -> Figure:
    """Draw the confusion matrix of a result, or of nearest neighbours."""
    if request.result:
        return _of_result(request.run, request.result)
    if request.encoder == "raw":
        raise InputError("encoder", "raw", "use target, view or random; or --result knn-raw...")
    subject = open_subject(request)
    encoder = make_encoder(subject, request.encoder, subject.fit_ids)
    config = subject.config
    train = subject.train_ids[: config.eval.knn_clips]
    guess = nearest_neighbour(
        encoder, subject.clips, train, subject.test_ids, config, subject.dtype, subject.world
    )
    return knn_figure(guess, subject.labels(subject.test_ids), subject.store.class_names)
