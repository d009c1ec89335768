# SPDX-License-Identifier: Apache-2.0
"""kNN: cosine similarity of frozen features (method 6.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.frozen import cosine_features
from sjepa_fast.evaluation.metrics import accuracy
from sjepa_fast.evaluation.outcome import Outcome
from sjepa_fast.evaluation.probes.neighbours import knn_predict
from sjepa_fast.evaluation.request import CosineRequest
from sjepa_fast.evaluation.subject import Subject


@dataclass(frozen=True)
class KnnRequest(CosineRequest):
    """Cosine nearest neighbours on frozen features, exact (method 6.5)."""

    k: tuple[int, ...] = (1, 2, 5, 10)
    """Neighbours; the first is the headline."""

    def settled(self, config: TrainConfig) -> Self:
        """Also check the neighbours."""
        if not self.k or min(self.k) < 1:
            raise InputError("k", self.k, "count at least 1 neighbour")
        return super().settled(config)

    def result_name(self) -> str:
        """Name the result of a settled request."""
        return self.named("knn")


def run_knn(subject: Subject, request: KnnRequest) -> Outcome:
    """Predict by the nearest training clips; deterministic, so there are no seeds.

    Returns accuracy for each k; the predictions are those of the first. Raises InputError if a
    neighbour count is below 1.
    """
    request = request.settled(subject.config)
    train, test, width, recipe = cosine_features(subject, request)
    guesses = knn_predict(train, subject.labels(subject.train_ids), test, request.k)
    labels = subject.labels(subject.test_ids)
    figures = {f"top1_k{k}": accuracy(guess, labels) for k, guess in guesses.items()}
    return Outcome(
        name=request.result_name(),
        figures=figures,
        recipe=recipe,
        predicted_SQ=guesses[request.k[0]][None],
        features=width,
    )
