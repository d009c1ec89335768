# SPDX-License-Identifier: Apache-2.0
"""Action retrieval: test clips query the training clips, by cosine of frozen features."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sjepa_fast.evaluation.frozen import cosine_features
from sjepa_fast.evaluation.metrics import accuracy
from sjepa_fast.evaluation.outcome import Outcome
from sjepa_fast.evaluation.probes.ranking import retrieve
from sjepa_fast.evaluation.request import CosineRequest
from sjepa_fast.evaluation.subject import Subject


@dataclass(frozen=True)
class RetrievalRequest(CosineRequest):
    """Action retrieval: test clips query the training clips; rank-1 and mean average precision."""

    def result_name(self) -> str:
        """Name the result of a settled request."""
        return self.named("retrieval")


def run_retrieval(subject: Subject, request: RetrievalRequest) -> Outcome:
    """Rank the training clips for each test clip; deterministic, so there are no seeds.

    Returns rank1 and map in percent; the predictions are the labels of the first ranks.
    """
    request = request.settled(subject.config)
    gallery, query, width, recipe = cosine_features(subject, request)
    labels = subject.labels(subject.test_ids)
    first, precision = retrieve(gallery, subject.labels(subject.train_ids), query, labels)
    answered = ~precision.isnan()
    figures = {
        "rank1": accuracy(first, labels),
        "map": 100 * torch.nanmean(precision).item(),
        "queries_without_a_match": int((~answered).sum()),
    }
    recipe["gallery"] = "training part"
    recipe["map"] = "mean over queries of the average precision over the whole gallery"
    return Outcome(
        name=request.result_name(),
        figures=figures,
        recipe=recipe,
        predicted_SQ=first[None],
        features=width,
    )
