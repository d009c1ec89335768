# SPDX-License-Identifier: Apache-2.0
"""Bones and motion beside the joints, for encoders that were built for joints."""

from __future__ import annotations

import torch
from torch import Tensor

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.data.clips import ResidentClips
from sjepa_fast.models.encoder import SkeletonTransformer
from sjepa_kernels.tubelets import split_streams, to_tubelets


def join_streams(
    encoder: SkeletonTransformer,
    clips: ResidentClips,
    train_ids: Tensor,
    config: TrainConfig,
    *,
    fresh: bool,
) -> None:
    """Give the encoder a second input layer, scaled to the evaluation crops of training clips.

    `fresh` says that the encoder is not pre-trained; else the layer starts at 0, so that the first
    step sees what the encoder has learnt.
    """
    crops = [
        clips.eval_crop(ids, config.data, stream="all")
        for ids in torch.split(train_ids[:4096], 256)
    ]
    bodies = torch.cat(crops).flatten(0, 1)
    present = (bodies != 0).flatten(1).any(dim=1)
    tubelets = to_tubelets(bodies[present], config.model.segment_length).flatten(0, 1)
    encoder.embed.join_streams(split_streams(tubelets)[1], fresh=fresh)
