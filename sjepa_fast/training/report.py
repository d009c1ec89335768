# SPDX-License-Identifier: Apache-2.0
"""The report of a finished run: kNN before and after training, and three pictures."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.data.clips import ResidentClips
from sjepa_fast.data.store import Store
from sjepa_fast.evaluation.features import nearest_neighbour, raw_nearest_neighbour
from sjepa_fast.evaluation.labelled import labelled_parts, lacking
from sjepa_fast.evaluation.metrics import accuracy, confusion_matrix
from sjepa_fast.objectives.objective import Objective
from sjepa_fast.opening import check_fields, read_json
from sjepa_fast.reporting.curves import SCORES, run_curves
from sjepa_fast.runtime.files import write_json
from sjepa_fast.viz.saving import save_pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _score_before(config: TrainConfig) -> float:
    path = config.run / "results" / "knn-before.json"
    score = read_json("run", path)
    check_fields("run", path, score, {"top1": (float,)})
    return float(score["top1"])


def write_report(
    config: TrainConfig,
    store: Store,
    clips: ResidentClips,
    model: Objective,
    dtype: torch.dtype,
    guess: Tensor | None,
) -> list[str]:
    """Score the encoder that is used downstream and write the run's pictures.

    `guess` are the labels that its nearest neighbours predict, if that is known already. Returns
    lines to print: where the pictures are, and the scores before and after, where there are labels.
    """
    run, device = config.run, clips.joints_RVC.device
    first = int(store.ids(config.data.split, "train")[0])

    def mask() -> Figure:
        from sjepa_fast.pictures.mask import clip_mask
        from sjepa_fast.viz.tokens import token_figure

        return token_figure(clip_mask(config, store, clips, first, step=0))

    def curves(scores: dict[str, Any] | None = None) -> Figure:
        from sjepa_fast.viz.curves import curves_figure

        return curves_figure([run_curves(run, scores)])

    if lacking(store, config.data.split) is not None:
        return [save_pictures(run, {"curves.png": curves, "mask.png": mask})]
    parts = labelled_parts(store, config.data.split)
    train, test = (torch.from_numpy(ids).to(device) for ids in parts)
    train = train[: config.eval.knn_clips]
    labels = clips.labels_N[test]
    if guess is None:
        guess = nearest_neighbour(model.eval_encoder, clips, train, test, config, dtype)
    after = accuracy(guess, labels)
    before = _score_before(config)
    raw_guess = raw_nearest_neighbour(clips, train, test, config)
    raw = None if raw_guess is None else accuracy(raw_guess, labels)
    scores = {"pool": config.eval.online_pool, "before": before, "after": after, "raw": raw}

    def confusion() -> Figure:
        from sjepa_fast.pictures.confusion import knn_figure

        return knn_figure(guess, labels, store.class_names)

    pictures = save_pictures(
        run, {"curves.png": partial(curves, scores), "mask.png": mask, "confusion.png": confusion}
    )
    matrix = confusion_matrix(guess, labels, len(store.class_names))
    cells = matrix.nonzero()
    pairs = torch.cat([cells, matrix[cells.T[0], cells.T[1]][:, None]], dim=1)
    # True class, predicted class, clips.
    confused = {"classes": list(store.class_names), "confusion": pairs.tolist()}
    write_json(run / SCORES, {**scores, **confused})
    beside = "" if raw is None else f", {raw:.1f} % by raw coordinates"
    origin = config.continue_from
    begun = f"weights of {origin}" if origin else "random initialisation"
    return [
        f"kNN ({config.eval.online_pool} pooling, {config.data.split}): {before:.1f} % with the "
        f"{begun}, {after:.1f} % after training{beside}",
        pictures,
    ]
