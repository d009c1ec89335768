"""Loss, attention and predictions by token are those of the objectives and blocks themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sjepa_fast.config.schema import TrainConfig, replace
from sjepa_fast.models.residual import Residual
from sjepa_fast.objectives.coordinates import CoordinateObjective, denormalized, normalized
from sjepa_fast.objectives.objective import StepInput
from sjepa_fast.reporting.tokens import (
    TOKEN_LOSSES,
    attention_weights,
    features_and_attention,
    predicted_frames,
    predictions,
)
from sjepa_fast.skeletons import NTU25
from sjepa_kernels import self_attention
from sjepa_kernels.tubelets import to_frames
from tests.tiny import AIMS, PREDICTING, STEP_CONFIG, drawn, objective, step_input


def made(kind: str, **more: object) -> tuple[TrainConfig, StepInput]:
    aims = {**AIMS[kind], "target_layers": 1, **more}
    config = replace(STEP_CONFIG, objective=aims, mask={"ratio": 0.6})
    return config, step_input(config, drawn([1] * 6, [5, 9, 12, 20, 7, 30], NTU25))


def test_every_objective_that_predicts_has_a_loss_by_token() -> None:
    assert list(TOKEN_LOSSES) == PREDICTING


@pytest.mark.parametrize("kind", PREDICTING)
def test_the_mean_over_tokens_is_the_loss_of_the_step(kind: str) -> None:
    config, batch = made(kind)
    model = objective(config).eval()
    if model.center is not None:
        model.center.normal_(0, 0.3)
    found = predictions(model, batch)
    assert found is not None
    assert found[1].shape == batch.ids_mask_BQ.shape
    assert found[1].std() > 0
    torch.testing.assert_close(found[1].mean(), model(batch).loss.detach(), rtol=1e-4, atol=1e-5)


def test_an_objective_without_predictor_has_none() -> None:
    config, batch = made("multiview")
    assert predictions(objective(config), batch) is None


def test_attention_weights_are_what_the_block_mixes_values_by() -> None:
    block = objective(replace(STEP_CONFIG, model={"heads": 4})).view_encoder.blocks[0]
    x = torch.randn(2, 11, 32)
    with torch.no_grad():
        qkv = block.qkv(block.norm1(x)).unflatten(2, (3, 4, 8))
        mixed = attention_weights(block, x) @ qkv[:, :, 2].transpose(1, 2)
        torch.testing.assert_close(mixed.transpose(1, 2), self_attention(qkv), rtol=1e-4, atol=1e-5)


def test_attention_received_is_of_the_last_block_and_one_on_average() -> None:
    config, batch = made("sjepa")
    config = replace(config, model={"depth": 2})
    encoder = objective(config).view_encoder
    features, got = features_and_attention(encoder, batch.clip_BNP)
    torch.testing.assert_close(features, encoder(batch.clip_BNP).detach())
    torch.testing.assert_close(got.mean(1), torch.ones(len(got)))
    assert got.std() > 0
    with torch.no_grad():
        x = encoder.blocks[0](Residual(encoder.embed(batch.clip_BNP))).settled()
        weights = attention_weights(encoder.blocks[1], x)
    torch.testing.assert_close(got, weights.sum(2).mean(1))


@pytest.mark.parametrize("norm", ["none", "patch", "temporal"])
def test_denormalized_undoes_normalized(norm: str) -> None:
    numbers = torch.randn(3, 4 * 25, 12) * 3 + 1
    there = normalized(numbers, 25, norm)
    torch.testing.assert_close(denormalized(there, numbers, 25, norm), numbers)


def true_numbers(model: CoordinateObjective, batch: StepInput) -> Tensor:
    target = normalized(model.numbers(batch.view_BNP), 25, model.objective.target_norm)
    ids = batch.ids_mask_BQ.long()[:, :, None].expand(-1, -1, target.shape[2])
    return target.gather(1, ids)


@pytest.mark.parametrize("norm", ["none", "patch", "temporal"])
@pytest.mark.parametrize("kind", ["mamp", "skeletonmae"])
def test_a_right_prediction_is_the_clip_itself(kind: str, norm: str) -> None:
    config, batch = made(kind, target_norm=norm)
    model = objective(config)
    assert isinstance(model, CoordinateObjective)
    clip = to_frames(batch.view_BNP, 25)
    right = true_numbers(model, batch)
    torch.testing.assert_close(predicted_frames(model, batch, right), clip, rtol=1e-4, atol=1e-4)
    wrong = predicted_frames(model, batch, right + 1)
    hidden = torch.ones(clip.shape[0], 2 * 25, dtype=torch.bool)
    hidden.scatter_(1, batch.ids_keep_BK.long(), False)
    by_frame = hidden.view(-1, 2, 1, 25).expand(-1, -1, 4, -1).flatten(1, 2)
    torch.testing.assert_close(wrong[~by_frame], clip[~by_frame])
    moved = (wrong - clip).abs().amax(-1)[by_frame]
    # Motion leads away from the frame before, so a hidden first frame stays.
    assert (moved > 1e-3).double().mean() > (0.99 if kind == "skeletonmae" else 0.7)
