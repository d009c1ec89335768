# SPDX-License-Identifier: Apache-2.0
"""Features of whole clips from a frozen encoder, pooled in the ways the protocols use.

Shapes: B clips, M bodies, S segments, V joints, N = S*V tokens, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from sjepa_fast.config.schema import Pool, Scaling, TrainConfig
from sjepa_fast.data.clips import ResidentClips
from sjepa_fast.evaluation.probes.neighbours import (
    center_features,
    half_whiten_features,
    knn_predict,
    standardize_features,
)
from sjepa_fast.models.heads import PARTS, time_means
from sjepa_fast.runtime.device import autocast
from sjepa_fast.runtime.dist import World
from sjepa_fast.runtime.progress import SILENT, Display
from sjepa_kernels.tubelets import to_tubelets

# Clips that are encoded at a time. Sums depend on it in their last bits, so several processes share
# whole chunks.
CHUNK = 256
# A run of a large set does not wait for a score that training has no part in.
RAW_BYTES = 2**30
ALONE = World()


_POOLS: dict[Pool, Callable[[Tensor], Tensor]] = {
    "mean": lambda x_BSVD: x_BSVD.flatten(1, 2).mean(dim=1),
    "joint": lambda x_BSVD: x_BSVD.mean(dim=1),
    "pyramid": lambda x_BSVD: time_means(x_BSVD.unsqueeze(1), PARTS["pyramid"]),
    "full": lambda x_BSVD: x_BSVD,
}


def pool_tokens(features_BMND: Tensor, pool: Pool, joints: int) -> Tensor:
    """Average over persons, then pool tokens.

    mean: over segments and joints, (B, D), the papers' pooling (method 6.1); joint: over
    segments, (B, V*D); pyramid: of each joint over the whole time, its halves and its quarters,
    (B, 7*V*D) in this order; full: none, (B, N*D). Absent persons are averaged in, as in MAMP.
    """
    tokens_BSVD = features_BMND.mean(dim=1).unflatten(1, (-1, joints))
    return _POOLS[pool](tokens_BSVD).flatten(1)


@torch.no_grad()
def clip_features(
    encoder: nn.Module,
    clips: ResidentClips,
    ids: Tensor,
    config: TrainConfig,
    dtype: torch.dtype,
    pool: Pool,
    world: World = ALONE,
    display: Display = SILENT,
) -> Tensor:
    """Encode clips (centered evaluation crop, no augmentation, no mask) and pool the tokens.

    The processes of `world` share the clips out. Returns (len(ids), features) float32, computed in
    `dtype`, in all of them. Where a training run has left too little of a GPU's memory for a chunk,
    it is encoded in halves.
    """

    def encode(chunk: Tensor) -> Tensor:
        features = encode_tokens(encoder, clips, chunk, config, dtype)
        return pool_tokens(features, pool, clips.layout.num_joints)

    chunks = ids.split(CHUNK)
    display.count("features", sum(map(len, world.shares(chunks)[world.rank])))
    return world.map_rows(display.counted(in_halves(encode)), chunks)


def in_halves(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the function, which takes what does not fit into a GPU's memory half by half."""

    def call(chunk: Tensor) -> Tensor:
        with contextlib.suppress(torch.OutOfMemoryError):
            return function(chunk)
        # Only now are the tensors gone that the exception's frames have held.
        torch.cuda.empty_cache()
        if len(chunk) == 1:
            return function(chunk)
        return torch.cat([call(half) for half in chunk.chunk(2)])

    return call


@torch.no_grad()
def encode_tokens(
    encoder: nn.Module, clips: ResidentClips, ids_B: Tensor, config: TrainConfig, dtype: torch.dtype
) -> Tensor:
    """Encode the centered evaluation crop of clips: the features of all tokens, (B, M, N, D)."""
    x = clips.eval_crop(ids_B, config.data).flatten(0, 1)
    return body_features(encoder, clips, to_tubelets(x, config.model.segment_length), dtype)


def pooled_features(
    encoder: nn.Module, clips: ResidentClips, tokens_BNP: Tensor, dtype: torch.dtype, pool: Pool
) -> Tensor:
    """Encode tubelets, whose rows are clips x bodies, and pool the tokens of each clip."""
    features = body_features(encoder, clips, tokens_BNP, dtype)
    return pool_tokens(features, pool, clips.layout.num_joints)


def body_features(
    encoder: nn.Module, clips: ResidentClips, tokens_BNP: Tensor, dtype: torch.dtype
) -> Tensor:
    """Encode tubelets, whose rows are clips x bodies, to (B, M, N, D) float32."""
    with autocast(tokens_BNP.device, dtype):
        features = encoder(tokens_BNP)
    whole: Tensor = features.float().view(-1, clips.max_bodies, *features.shape[1:])
    return whole


@torch.no_grad()
def raw_features(clips: ResidentClips, ids: Tensor, config: TrainConfig) -> Tensor:
    """Coordinates of the evaluation crop as features, (len(ids), M*T*V*C): the baseline."""
    return torch.cat([clips.eval_crop(c, config.data).flatten(1) for c in ids.split(CHUNK)])


def scale_features(
    train: Tensor, test: Tensor, scaling: Scaling, pool: Pool | Literal["raw"]
) -> tuple[Tensor, Tensor]:
    """Scale features by statistics of the training part.

    none leaves them; fitted standardises pooled features and only centers un-pooled ones and
    raw coordinates, where a division by tiny deviations would amplify noise; pca turns both kinds
    onto their principal axes, half-whitened.
    """
    if scaling == "none":
        return train, test
    if scaling == "pca":
        return half_whiten_features(train, test)
    if pool in ("full", "raw"):
        return center_features(train, test)
    return standardize_features(train, test)


def raw_nearest_neighbour(
    clips: ResidentClips, train_ids: Tensor, test_ids: Tensor, config: TrainConfig
) -> Tensor | None:
    """Predict the labels of test clips as `nearest_neighbour`, by their coordinates.

    Returns None where the coordinates take more than `RAW_BYTES`.
    """
    numbers = clips.max_bodies * config.data.frames * clips.layout.num_joints * 3
    if 4 * numbers * (len(train_ids) + len(test_ids)) > RAW_BYTES:
        return None
    train, test = (raw_features(clips, ids, config) for ids in (train_ids, test_ids))
    train, test = scale_features(train, test, config.eval.knn_scaling, "raw")
    return knn_predict(train, clips.labels_N[train_ids], test)[1]


def nearest_neighbour(
    encoder: nn.Module,
    clips: ResidentClips,
    train_ids: Tensor,
    test_ids: Tensor,
    config: TrainConfig,
    dtype: torch.dtype,
    world: World = ALONE,
) -> Tensor:
    """Predict the labels of test clips by cosine 1-NN over the configured online pooling."""
    pool = config.eval.online_pool
    train = clip_features(encoder, clips, train_ids, config, dtype, pool, world)
    test = clip_features(encoder, clips, test_ids, config, dtype, pool, world)
    train, test = scale_features(train, test, config.eval.knn_scaling, pool)
    return knn_predict(train, clips.labels_N[train_ids], test)[1]
