"""Attention and predictions by token, as a page shows them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sjepa_fast.config.schema import TrainConfig, replace
from sjepa_fast.models.attention_weights import attention_weights
from sjepa_fast.objectives.coordinates import CoordinateObjective, normalized
from sjepa_fast.objectives.objective import StepInput
from sjepa_fast.reporting.tokens import features_and_attention, predicted_frames
from sjepa_fast.skeletons import NTU25
from sjepa_kernels.tubelets import to_frames
from tests.tiny import AIMS, STEP_CONFIG, drawn, objective, step_input


def made(kind: str, **more: object) -> tuple[TrainConfig, StepInput]:
    config = replace(STEP_CONFIG, objective={**AIMS[kind], **more}, mask={"ratio": 0.6})
    return config, step_input(config, drawn([1] * 6, [5, 9, 12, 20, 7, 30], NTU25))


def test_attention_received_is_of_the_last_block_and_one_on_average() -> None:
    config, batch = made("sjepa")
    encoder = objective(replace(config, model={"depth": 2})).view_encoder
    features, got = features_and_attention(encoder, batch.clip_BNP)
    torch.testing.assert_close(features, encoder(batch.clip_BNP).detach())
    torch.testing.assert_close(got.mean(1), torch.ones(len(got)))
    weights = attention_weights(encoder, batch.clip_BNP, 1)[0]
    torch.testing.assert_close(got, weights.sum(2).mean(1))
    first = attention_weights(encoder, batch.clip_BNP, 0)[0]
    assert not torch.allclose(got, first.sum(2).mean(1), rtol=1e-3)


def true_numbers(model: CoordinateObjective, batch: StepInput) -> Tensor:
    target = normalized(model.numbers(batch.view_BNP), 25, model.objective.target_norm)
    ids = batch.ids_mask_BQ.long()[:, :, None].expand(-1, -1, target.shape[2])
    return target.gather(1, ids)


@pytest.mark.parametrize("norm", ["none", "patch", "temporal"])
@pytest.mark.parametrize("kind", ["mamp", "skeletonmae"])
def test_a_right_prediction_is_the_clip_itself(
    kind: str, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, batch = made(kind, target_norm=norm)
    model = objective(config)
    assert isinstance(model, CoordinateObjective)
    clip = to_frames(batch.view_BNP, 25)
    said = true_numbers(model, batch)
    monkeypatch.setattr(model.predictor, "forward", lambda *_, **__: said)
    torch.testing.assert_close(predicted_frames(model, batch), clip, rtol=1e-4, atol=1e-4)
    said = said + 1
    wrong = predicted_frames(model, batch)
    hidden = torch.ones(clip.shape[0], 2 * 25, dtype=torch.bool)
    hidden.scatter_(1, batch.ids_keep_BK.long(), False)
    by_frame = hidden.view(-1, 2, 1, 25).expand(-1, -1, 4, -1).flatten(1, 2)
    torch.testing.assert_close(wrong[~by_frame], clip[~by_frame])
    moved = (wrong - clip).abs().amax(-1)[by_frame]
    # Motion leads away from the frame before, so a hidden first frame stays.
    assert (moved > 1e-3).double().mean() > (0.99 if kind == "skeletonmae" else 0.7)
