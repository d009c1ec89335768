"""kNN: cosine similarity of frozen features (method 6.5)."""

from __future__ import annotations

from dataclasses import dataclass

from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.features import Pool
from sjepa_fast.evaluation.frozen import cosine_features, result_name
from sjepa_fast.evaluation.metrics import accuracy
from sjepa_fast.evaluation.outcome import Outcome
from sjepa_fast.evaluation.probes.neighbours import knn_predict
from sjepa_fast.evaluation.request import Request
from sjepa_fast.evaluation.subject import Subject


@dataclass(frozen=True)
class KnnRequest(Request):
    """Cosine nearest neighbours on frozen features, exact (method 6.5)."""

    pool: Pool | None = None
    """Pooling of tokens; default: the run's online pooling."""
    k: tuple[int, ...] = (1, 2, 5, 10)
    """Neighbours; the first is the headline."""


def run_knn(subject: Subject, request: KnnRequest) -> Outcome:
    """Predict by the nearest training clips; deterministic, so there are no seeds.

    Returns accuracy for each k; the predictions are those of the first. Raises InputError if a
    neighbour count is below 1.
    """
    if not request.k or min(request.k) < 1:
        raise InputError("k", request.k, "count at least 1 neighbour")
    pool = request.pool or subject.config.eval.online_pool
    train, test, recipe = cosine_features(subject, request.encoder, pool)
    guesses = knn_predict(train, subject.labels(subject.train_ids), test, request.k)
    labels = subject.labels(subject.test_ids)
    figures = {f"top1_k{k}": accuracy(guess, labels) for k, guess in guesses.items()}
    return Outcome(
        name=result_name("knn", request.encoder, pool),
        figures=figures,
        recipe=recipe,
        predicted_SQ=guesses[request.k[0]][None],
    )
