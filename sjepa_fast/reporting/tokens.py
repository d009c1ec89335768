"""What trained networks make of single tokens: loss, attention, predicted coordinates.

Shapes: B sequences (clips x bodies), N = S*V tokens, Q masked, P numbers per token, D width,
H heads, T frames, V joints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.config.traits import TRAITS
from sjepa_fast.models.encoder import SkeletonTransformer
from sjepa_fast.models.residual import Residual
from sjepa_fast.models.transformer import Block
from sjepa_fast.objectives.coordinates import (
    CoordinateObjective,
    denormalized,
    normalized,
    rows_at,
)
from sjepa_fast.objectives.mamp import MAMP
from sjepa_fast.objectives.objective import Objective, StepInput
from sjepa_fast.objectives.sjepa import SJEPA
from sjepa_fast.objectives.skeleton2vec import Skeleton2vec
from sjepa_kernels.tubelets import to_frames


def _cross_entropy(model: SJEPA, batch: StepInput, prediction_BQD: Tensor) -> Tensor:
    target = model.make_targets(batch).tokens_UND.flatten(0, 1)[batch.target_rows()]
    wanted = ((target - model.center) / model.objective.temp_target).softmax(-1)
    said = (prediction_BQD.flatten(0, 1) / model.objective.temp_student).log_softmax(-1)
    return -(wanted * said).sum(-1).view(prediction_BQD.shape[:2])


def _feature_error(model: Objective, batch: StepInput, prediction_BQD: Tensor) -> Tensor:
    target = model.make_targets(batch).tokens_UND.flatten(0, 1)[batch.target_rows()]
    return (prediction_BQD - target.view(prediction_BQD.shape)).square().mean(-1)


def _number_error(model: CoordinateObjective, batch: StepInput, prediction_BQP: Tensor) -> Tensor:
    norm = model.objective.target_norm
    target = normalized(model.numbers(batch.view_BNP), model.joints, norm)
    return (prediction_BQP - rows_at(target, batch.ids_mask_BQ)).square().mean(-1)


# The loss at each masked token, of the objectives that predict; the mean is their loss.
TOKEN_LOSSES: dict[str, Callable[[Any, StepInput, Tensor], Tensor]] = {
    "sjepa": _cross_entropy,
    "skeleton2vec": _feature_error,
    "mamp": _number_error,
    "skeletonmae": _number_error,
}


@torch.no_grad()
def predictions(model: Objective, batch: StepInput) -> tuple[Tensor, Tensor] | None:
    """Predict at the masked tokens: (B, Q, numbers), and the loss there (B, Q).

    Without the regularizer, if there is one. None for an objective that predicts nothing.
    """
    loss = TOKEN_LOSSES.get(model.objective.kind)
    if loss is None:
        return None
    visible = model.encode_visible(batch)
    predict = model.predict if isinstance(model, Skeleton2vec) else model.network("predictor")
    found = predict(visible, batch.ids_keep_BK, batch.ids_mask_BQ)
    return found, loss(model, batch, found)


def attention_weights(block: Block, x_BND: Tensor) -> Tensor:
    """Return the softmax of a block's attention to its input: (B, H, queries N, keys N)."""
    qkv = block.qkv(block.norm1(x_BND)).unflatten(2, (3, block.heads, -1))
    q_BHND, k_BHND, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    scores: Tensor = q_BHND @ k_BHND.transpose(2, 3) / q_BHND.shape[3] ** 0.5
    return scores.softmax(-1)


@torch.no_grad()
def features_and_attention(
    encoder: SkeletonTransformer, tubelets_BNP: Tensor
) -> tuple[Tensor, Tensor]:
    """Encode all tokens, (B, N, D), and tell how much attention each gets, (B, N).

    In the last block, mean over heads and over the tokens that look; 1 is an even share.
    """
    inputs: list[Tensor] = []

    def keep(_: torch.nn.Module, called_with: tuple[Residual, ...]) -> None:
        inputs.append(called_with[0].settled())

    last = encoder.blocks[-1]
    assert isinstance(last, Block)
    hook = last.register_forward_pre_hook(keep)
    try:
        features = encoder(tubelets_BNP)
    finally:
        hook.remove()
    weights = attention_weights(last, inputs[0])
    return features, weights.mean(dim=(1, 2)) * tubelets_BNP.shape[1]


def predicts_coordinates(config: TrainConfig) -> bool:
    """Whether predictions can be drawn as joints."""
    predicts = TRAITS[config.objective.kind].predicts
    return predicts == "numbers" and config.data.stream == "joint"


def predicted_frames(
    model: CoordinateObjective, batch: StepInput, prediction_BQP: Tensor
) -> Tensor:
    """Turn predicted numbers into the clip that they say, (B, T, V, 3).

    Visible tokens are as they are. Mean and deviation, which the target leaves out, are the true
    ones. Predicted motion (MAMP) is added up from the last frame that the view encoder saw.
    """
    numbers = model.numbers(batch.view_BNP)
    norm, joints = model.objective.target_norm, model.joints
    guess = normalized(numbers, joints, norm)
    ids = batch.ids_mask_BQ.long()[:, :, None].expand(prediction_BQP.shape)
    guess = denormalized(guess.scatter(1, ids, prediction_BQP), numbers, joints, norm)
    hidden = torch.zeros_like(numbers).scatter(1, ids, 1.0).bool()
    said = to_frames(torch.where(hidden, guess, numbers), joints)
    if not isinstance(model, MAMP):
        return said
    true, hidden_BTV3 = to_frames(batch.view_BNP, joints), to_frames(hidden, joints)
    frames = [true[:, 0]]
    for t in range(1, true.shape[1]):
        moved = frames[-1] + said[:, t - 1]
        frames.append(torch.where(hidden_BTV3[:, t], moved, true[:, t]))
    return torch.stack(frames, dim=1)
