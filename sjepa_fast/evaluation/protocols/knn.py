"""kNN and retrieval: cosine similarity of frozen features (method 6.5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.features import Pool, clip_features, raw_features, scale_features
from sjepa_fast.evaluation.metrics import accuracy
from sjepa_fast.evaluation.outcome import Outcome
from sjepa_fast.evaluation.probes.neighbours import knn_predict
from sjepa_fast.evaluation.probes.ranking import retrieve
from sjepa_fast.evaluation.request import KnnRequest, RetrievalRequest
from sjepa_fast.evaluation.subject import Subject, make_encoder


def frozen_features(subject: Subject, encoder: str, pool: Pool) -> tuple[Tensor, Tensor]:
    """Return features of the training and the test part, by the encoder named or raw."""
    parts = (subject.train_ids, subject.test_ids)
    if encoder == "raw":
        train, test = (raw_features(subject.clips, ids, subject.config) for ids in parts)
        return train, test
    network = make_encoder(subject, encoder, subject.train_ids)
    train, test = (
        clip_features(network, subject.clips, ids, subject.config, subject.dtype, (pool,))[pool]
        for ids in parts
    )
    return train, test


def _scaled(subject: Subject, encoder: str, pool: Pool) -> tuple[Tensor, Tensor, dict[str, Any]]:
    scaling = subject.config.eval.knn_scaling
    features = frozen_features(subject, encoder, pool)
    train, test = scale_features(*features, scaling, "raw" if encoder == "raw" else pool)
    recipe = {"metric": "cosine", "scaling": scaling, "pool": None if encoder == "raw" else pool}
    return train, test, recipe


def result_name(protocol: str, encoder: str, pool: Pool) -> str:
    """Name a frozen protocol's result; raw coordinates have no pooling."""
    return f"{protocol}-raw" if encoder == "raw" else f"{protocol}-{encoder}-{pool}"


def run_knn(subject: Subject, request: KnnRequest) -> Outcome:
    """Predict by the nearest training clips; deterministic, so there are no seeds.

    Args:
        subject: Run and clips.
        request: Encoder, pooling and neighbour counts.

    Returns:
        Accuracy for each k; the predictions are those of the first.

    Raises:
        InputError: If a neighbour count is below 1.
    """
    if not request.k or min(request.k) < 1:
        raise InputError("k", request.k, "count at least 1 neighbour")
    pool = request.pool or subject.config.eval.online_pool
    train, test, recipe = _scaled(subject, request.encoder, pool)
    guesses = knn_predict(train, subject.labels(subject.train_ids), test, request.k)
    labels = subject.labels(subject.test_ids)
    figures = {f"top1_k{k}": accuracy(guess, labels) for k, guess in guesses.items()}
    return Outcome(
        name=result_name("knn", request.encoder, pool),
        figures=figures,
        recipe=recipe,
        predicted_SQ=guesses[request.k[0]][None],
    )


def run_retrieval(subject: Subject, request: RetrievalRequest) -> Outcome:
    """Rank the training clips for each test clip; deterministic, so there are no seeds.

    Args:
        subject: Run and clips.
        request: Encoder and pooling.

    Returns:
        rank1 and map in percent; the predictions are the labels of the first ranks.
    """
    pool = request.pool or subject.config.eval.online_pool
    gallery, query, recipe = _scaled(subject, request.encoder, pool)
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
