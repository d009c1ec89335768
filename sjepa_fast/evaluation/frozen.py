# SPDX-License-Identifier: Apache-2.0
"""Frozen features of the training and test part."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sjepa_fast.config.schema import Pool
from sjepa_fast.evaluation.features import clip_features, raw_features, scale_features
from sjepa_fast.evaluation.request import CosineRequest
from sjepa_fast.evaluation.subject import Subject, make_encoder


def frozen_features(subject: Subject, encoder: str, pool: Pool) -> tuple[Tensor, Tensor]:
    """Return features of the training and the test part, from the named encoder, or raw."""
    parts = (subject.train_ids, subject.test_ids)
    if encoder == "raw":
        train, test = (raw_features(subject.clips, ids, subject.config) for ids in parts)
        return train, test
    network = make_encoder(subject, encoder, subject.fit_ids)
    train, test = (encoded(subject, network, ids, pool) for ids in parts)
    return train, test


def encoded(subject: Subject, network: nn.Module, ids: Tensor, pool: Pool) -> Tensor:
    """Return what `clip_features` makes of a subject's clips, by all processes."""
    clips, config, dtype = subject.clips, subject.config, subject.dtype
    return clip_features(network, clips, ids, config, dtype, pool, subject.world, subject.display)


def cosine_features(
    subject: Subject, request: CosineRequest
) -> tuple[Tensor, Tensor, int, dict[str, Any]]:
    """Return scaled features of both parts for ranking by cosine, and what to record of them.

    That is their width before scaling, and the recipe. The request is settled.
    """
    pool, scaling = request.pool, request.scaling
    assert pool is not None and scaling is not None, "the request is settled"
    raw = request.encoder == "raw"
    features = frozen_features(subject, request.encoder, pool)
    train, test = scale_features(*features, scaling, "raw" if raw else pool)
    recipe = {"metric": "cosine", "scaling": scaling, "pool": None if raw else pool}
    return train, test, features[0].shape[1], recipe
