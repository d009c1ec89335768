# SPDX-License-Identifier: Apache-2.0
"""Objectives whose targets are numbers of the clip itself: coordinates or motion, normalised.

Shapes: B sequences (clips x bodies), R masks of each, V joints, N tokens, P numbers per token,
K kept, Q masked, D width.
"""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from sjepa_fast.models.predictor import Predictor
from sjepa_fast.objectives.distinct import Encoded
from sjepa_fast.objectives.objective import Objective, StepInput, StepOutput
from sjepa_kernels.tubelets import to_frames, to_tubelets

_EPS = 1e-6


class CoordinateObjective(Objective, abc.ABC):
    """View encoder and a predictor of a token's numbers; no target encoder.

    L = mean over masked tokens and their P numbers of (prediction - target)^2; a
    subclass defines the target in `numbers`.
    """

    predictor: Predictor

    @abc.abstractmethod
    def numbers(self, view_BNP: Tensor) -> Tensor:
        """Target numbers of every token before normalisation, (B, N, P)."""

    def forward(self, batch: StepInput) -> StepOutput:
        """Loss of one step, and the features of the visible tokens (B*R, K, D)."""
        visible, prediction, target = self._compared(batch)
        loss = self.regularized(mean_squared_error(prediction, target), visible, batch)
        return StepOutput(loss, Encoded(visible.detach()))

    def token_losses(self, batch: StepInput) -> Tensor:
        """Mean squared error of each predicted token's numbers."""
        _, prediction, target = self._compared(batch)
        return squared_errors(prediction, target).view(len(batch.view_BNP), -1)

    def restored(self, batch: StepInput) -> tuple[Tensor, Tensor]:
        """True and predicted numbers of all tokens, in the unit of the clip: two (B, N, P).

        A prediction has the mean and the deviation of the true numbers, of which the network is
        told nothing. Tokens that are not predicted keep their true numbers. For pictures, of a
        batch with one mask a sequence.
        """
        _, prediction, _ = self._compared(batch)
        numbers = self.numbers(batch.view_BNP)
        ids_BQP = batch.ids_by_sequence().long()[:, :, None].expand(-1, -1, numbers.shape[2])
        scale = normalized(numbers, self.joints, self.objective.target_norm)
        whole = scale.scatter(1, ids_BQP, prediction.float().view(ids_BQP.shape))
        return numbers, denormalized(whole, numbers, self.joints, self.objective.target_norm)

    def _compared(self, batch: StepInput) -> tuple[Tensor, Tensor, Tensor]:
        """Features of the visible tokens, the prediction, and its target."""
        visible = self.encode_visible(batch)
        prediction = self.network("predictor")(visible, batch.ids_keep_BK, batch.ids_mask_BQ)
        with torch.no_grad():
            numbers = self.numbers(batch.view_BNP)
            target = normalized(numbers, self.joints, self.objective.target_norm)
            target = rows_at(target, batch.ids_by_sequence())
        return visible, prediction, target


def normalized(tubelets_BNP: Tensor, joints: int, norm: str) -> Tensor:
    """Subtract the mean, divide by sqrt(unbiased variance + 1e-6).

    Args:
        tubelets_BNP: Target numbers.
        joints: V.
        norm: patch: over the P numbers of a token (MAMP, method 5.1); temporal: over the T frames
            of a joint's coordinate (method 5.2; its variance and epsilon are our choice); none.

    Returns:
        The normalised numbers, same shape.
    """
    if norm == "none":
        return tubelets_BNP
    x = to_frames(tubelets_BNP, joints) if norm == "temporal" else tubelets_BNP
    mean, deviation = _statistics(x, norm)
    x = (x - mean) / deviation
    return to_tubelets(x, tubelets_BNP.shape[2] // 3) if norm == "temporal" else x


def denormalized(tubelets_BNP: Tensor, of_BNP: Tensor, joints: int, norm: str) -> Tensor:
    """Undo `normalized` with the statistics of the numbers `of_BNP`; same shape."""
    if norm == "none":
        return tubelets_BNP
    if norm == "patch":
        mean, deviation = _statistics(of_BNP, norm)
        return tubelets_BNP * deviation + mean
    mean, deviation = _statistics(to_frames(of_BNP, joints), norm)
    x = to_frames(tubelets_BNP, joints) * deviation + mean
    return to_tubelets(x, tubelets_BNP.shape[2] // 3)


def _statistics(x: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """Mean and deviation over the frames (temporal), or over a token's numbers."""
    var, mean = torch.var_mean(x, dim=1 if norm == "temporal" else 2, keepdim=True)
    return mean, (var + _EPS).sqrt()


def rows_at(rows_BNP: Tensor, ids_BQ: Tensor) -> Tensor:
    """Rows of each sequence at `ids`, (B, Q, P)."""
    return rows_BNP.gather(1, ids_BQ.long()[:, :, None].expand(-1, -1, rows_BNP.shape[2]))


def squared_errors(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the squared error of each row of numbers, its mean over them, in float32."""
    wanted = target.view(prediction.shape)
    return (prediction.float() - wanted).square().mean(dim=-1)


def mean_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over all numbers, in float32 whatever the prediction was computed in."""
    target = target.view(prediction.shape)
    return torch.nn.functional.mse_loss(prediction.float(), target.float())
