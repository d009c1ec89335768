# SPDX-License-Identifier: Apache-2.0
"""What trained networks make of single tokens, as a page shows it.

Shapes: B sequences (clips x bodies), N = S*V tokens, D width, T frames, V joints.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.config.traits import TRAITS
from sjepa_fast.models.attention_weights import attention_weights
from sjepa_fast.models.encoder import SkeletonTransformer
from sjepa_fast.objectives.coordinates import CoordinateObjective
from sjepa_fast.objectives.mamp import MAMP
from sjepa_fast.objectives.objective import StepInput
from sjepa_kernels.tubelets import to_frames


def features_and_attention(
    encoder: SkeletonTransformer, tubelets_BNP: Tensor
) -> tuple[Tensor, Tensor]:
    """Encode all tokens, (B, N, D), and tell how much attention each gets, (B, N).

    In the last block, mean over heads and over the tokens that look; 1 is an even share.
    """
    last = len(encoder.blocks) - 1
    weights, _, features = attention_weights(encoder, tubelets_BNP, last)
    return features, weights.mean(dim=(1, 2)) * tubelets_BNP.shape[1]


def predicts_coordinates(config: TrainConfig) -> bool:
    """Whether predictions can be drawn as joints."""
    predicts = TRAITS[config.objective.kind].predicts
    return predicts == "numbers" and config.data.stream == "joint"


@torch.no_grad()
def predicted_frames(model: CoordinateObjective, batch: StepInput) -> Tensor:
    """Turn what is predicted at the masked tokens into the clip that it says, (B, T, V, 3).

    Visible tokens are as they are. Mean and deviation, which the target leaves out, are the true
    ones. Predicted motion (MAMP) is added up from the last frame that the view encoder saw.
    """
    said = to_frames(model.restored(batch)[1], model.joints)
    if not isinstance(model, MAMP):
        return said
    true = batch.view_BNP
    ids = batch.ids_by_sequence().long()[:, :, None].expand(-1, -1, true.shape[2])
    hidden = to_frames(torch.zeros_like(true).scatter(1, ids, 1.0), model.joints).bool()
    true = to_frames(true, model.joints)
    frames = [true[:, 0]]
    for t in range(1, true.shape[1]):
        frames.append(torch.where(hidden[:, t], frames[-1] + said[:, t - 1], true[:, t]))
    return torch.stack(frames, dim=1)
