"""Action retrieval: test clips query the training clips, by cosine of frozen features."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sjepa_fast.evaluation.features import Pool
from sjepa_fast.evaluation.frozen import cosine_features, result_name
from sjepa_fast.evaluation.metrics import accuracy
from sjepa_fast.evaluation.outcome import Outcome
from sjepa_fast.evaluation.probes.ranking import retrieve
from sjepa_fast.evaluation.request import Request
from sjepa_fast.evaluation.subject import Subject


@dataclass(frozen=True)
class RetrievalRequest(Request):
    """Action retrieval: test clips query the training clips; rank-1 and mean average precision."""

    pool: Pool | None = None
    """Pooling of tokens; default: the run's online pooling."""


def run_retrieval(subject: Subject, request: RetrievalRequest) -> Outcome:
    """Rank the training clips for each test clip; deterministic, so there are no seeds.

    Returns rank1 and map in percent; the predictions are the labels of the first ranks.
    """
    pool = request.pool or subject.config.eval.online_pool
    gallery, query, recipe = cosine_features(subject, request.encoder, pool)
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
        name=result_name("retrieval", request.encoder, pool),
        figures=figures,
        recipe=recipe,
        predicted_SQ=first[None],
    )
