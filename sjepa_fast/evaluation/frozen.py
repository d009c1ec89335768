"""Frozen features of the training and test part, and names of results made from them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sjepa_fast.evaluation.features import Pool, clip_features, raw_features, scale_features
from sjepa_fast.evaluation.subject import Subject, make_encoder


def frozen_features(subject: Subject, encoder: str, pool: Pool) -> tuple[Tensor, Tensor]:
    """Return features of the training and the test part, from the named encoder, or raw."""
    parts = (subject.train_ids, subject.test_ids)
    if encoder == "raw":
        train, test = (raw_features(subject.clips, ids, subject.config) for ids in parts)
        return train, test
    network = make_encoder(subject, encoder, subject.train_ids)
    train, test = (encoded(subject, network, ids, pool) for ids in parts)
    return train, test


def encoded(subject: Subject, network: nn.Module, ids: Tensor, pool: Pool) -> Tensor:
    """Return what `clip_features` makes of a subject's clips, by all processes."""
    clips, config, dtype = subject.clips, subject.config, subject.dtype
    return clip_features(network, clips, ids, config, dtype, pool, subject.world)


def cosine_features(
    subject: Subject, encoder: str, pool: Pool
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Return scaled features of both parts for ranking by cosine, and the recipe to record."""
    scaling = subject.config.eval.knn_scaling
    features = frozen_features(subject, encoder, pool)
    train, test = scale_features(*features, scaling, "raw" if encoder == "raw" else pool)
    recipe = {"metric": "cosine", "scaling": scaling, "pool": None if encoder == "raw" else pool}
    return train, test, recipe


def result_name(protocol: str, encoder: str, pool: Pool) -> str:
    """Name a frozen protocol's result; raw coordinates have no pooling."""
    return f"{protocol}-raw" if encoder == "raw" else f"{protocol}-{encoder}-{pool}"
