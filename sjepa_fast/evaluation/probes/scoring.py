# SPDX-License-Identifier: Apache-2.0
"""Scores of test clips by a classifier, from one crop of each or from several.

Shapes: Q test clips, C classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.data.clips import ResidentClips
from sjepa_fast.models.heads import ActionClassifier
from sjepa_fast.runtime.device import autocast
from sjepa_kernels.tubelets import TokenStream, to_tubelets

# How much of the evaluation crop the second and further test crops have (our choice).
TEST_CROP = 0.8


@torch.no_grad()
def classify(
    model: ActionClassifier,
    clips: ResidentClips,
    ids: Tensor,
    config: TrainConfig,
    dtype: torch.dtype,
    batch: int = 128,
    *,
    stream: TokenStream | None = None,
    crops: int = 1,
) -> Tensor:
    """Return the scores (Q, C), float32, of whole clips (centered evaluation crop).

    Of several `crops` (`scored_parts`) it is the logarithm of their mean probability.
    """
    model.eval()
    found = []
    for chunk in ids.split(batch):
        # Equal batches, so that compiled blocks are compiled once.
        filled = torch.cat([chunk, chunk[:1].expand(min(batch, len(ids)) - len(chunk))])
        scores = []
        for within in scored_parts(crops):
            x = clips.eval_crop(filled, config.data, stream=stream, within=within)
            with autocast(x.device, dtype):
                tokens = to_tubelets(x.flatten(0, 1), config.model.segment_length)
                scores.append(model(tokens, clips.max_bodies)[: len(chunk)].float())
        if crops > 1:
            likely = torch.stack(scores).log_softmax(dim=-1).logsumexp(dim=0)
            scores = [likely - math.log(crops)]
        found += scores
    return torch.cat(found)


def scored_parts(crops: int) -> list[tuple[float, float]]:
    """Return which parts of the evaluation crop are scored: all of it, then `TEST_CROP` of it.

    The others lie evenly from its beginning to its end; a single one in its middle.
    """
    free, others = 1 - TEST_CROP, crops - 1
    places = [free / 2] if others == 1 else [free * i / (others - 1) for i in range(others)]
    return [(0.0, 1.0), *((first, first + TEST_CROP) for first in places)]
