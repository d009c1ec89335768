"""The S-JEPA objective against a NumPy derivation, and its structural claims."""

import numpy as np
import pytest
import torch

from sjepa_fast.config.schema import TrainConfig, replace
from sjepa_fast.objectives.objective import StepInput
from sjepa_fast.objectives.sjepa import SJEPA
from sjepa_fast.skeletons import NTU25
from tests.tiny import drawn, step_input

CONFIG = replace(
    TrainConfig(),
    data={"frames": 8, "bodies": 2},
    model={"segment_length": 4, "width": 32, "depth": 1, "heads": 1, "predictor_depth": 1},
)


def clips() -> torch.Tensor:
    return torch.stack(drawn([2] * 3, [8] * 3, NTU25, seed=1))


def inputs(config: TrainConfig = CONFIG, x: torch.Tensor | None = None, step: int = 0) -> StepInput:
    return step_input(config, list(clips() if x is None else x), step)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_loss_and_center_sum_match_numpy() -> None:
    torch.manual_seed(0)
    model = SJEPA(CONFIG, NTU25)
    model.center.normal_()
    batch = inputs()
    out = model(batch)
    loss, center_sum, target = out.loss, out.center_sum, out.features
    with torch.no_grad():
        visible = model.view_encoder(batch.view_BNP, batch.ids_keep_BK)
        student = model.predictor(visible, batch.ids_keep_BK, batch.ids_mask_BQ).numpy()
        teacher = model.target_encoder(batch.clip_BNP).numpy()
    index = batch.ids_mask_BQ.numpy()
    masked = np.take_along_axis(teacher, index[..., None], axis=1).astype(np.float64)
    p2 = softmax((masked - model.center.numpy()) / 0.06)
    log_p1 = np.log(softmax(student.astype(np.float64) / 0.1))
    expected = -(p2 * log_p1).sum(axis=-1).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(center_sum.numpy(), masked.sum(axis=(0, 1)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(target.numpy(), teacher)


def test_uniform_target_and_prediction_give_the_log_of_the_width() -> None:
    model = SJEPA(CONFIG, NTU25)
    torch.nn.init.zeros_(model.target_encoder.norm.weight)
    torch.nn.init.zeros_(model.predictor.proj_out.weight)
    out = model(inputs())
    assert (out.features == 0).all()
    assert out.loss.item() == pytest.approx(np.log(32), rel=1e-6)


def test_gradients_reach_view_encoder_and_predictor_only() -> None:
    model = SJEPA(CONFIG, NTU25)
    model(inputs()).loss.backward()
    for name, weight in model.named_parameters():
        if name.startswith("target_encoder"):
            assert weight.grad is None, name
        else:
            assert weight.grad is not None and weight.grad.abs().sum() > 0, name


def test_target_encoder_sees_the_untransformed_clip_and_the_mask_ignores_the_view() -> None:
    plain = inputs()
    moved = inputs(replace(CONFIG, view={"rotation": 1.0}))
    assert torch.equal(plain.clip_BNP, moved.clip_BNP)
    assert not torch.equal(plain.view_BNP, moved.view_BNP)
    assert torch.equal(plain.ids_keep_BK, moved.ids_keep_BK)


def test_masks_change_with_the_step_and_differ_between_bodies_and_clips() -> None:
    first, second = inputs(step=0), inputs(step=1)
    assert not torch.equal(first.ids_keep_BK, second.ids_keep_BK)
    assert len({tuple(row.tolist()) for row in first.ids_keep_BK}) == 6


def test_random_masking_ignores_motion() -> None:
    config = replace(CONFIG, mask={"kind": "random"})
    still = torch.zeros_like(clips())
    assert torch.equal(inputs(config).ids_keep_BK, inputs(config, still).ids_keep_BK)
    assert not torch.equal(inputs().ids_keep_BK, inputs(x=still).ids_keep_BK)


def test_zero_body_has_one_target_whatever_the_sample() -> None:
    model = SJEPA(CONFIG, NTU25)
    x = clips()
    x[:, 1] = 0
    target = model(inputs(x=x)).features
    second = target.view(3, 2, *target.shape[1:])[:, 1]
    torch.testing.assert_close(second[0], second[1])
    torch.testing.assert_close(second[0], second[2])


def test_duplicated_body_has_equal_targets() -> None:
    model = SJEPA(CONFIG, NTU25)
    x = clips()
    x[:, 1] = x[:, 0]
    target = model(inputs(x=x)).features
    both = target.view(3, 2, *target.shape[1:])
    torch.testing.assert_close(both[:, 0], both[:, 1])


def test_target_layernorm_option_normalises_targets() -> None:
    config = replace(CONFIG, objective={"target_norm": "layernorm"})
    model = SJEPA(config, NTU25)
    torch.nn.init.normal_(model.target_encoder.norm.weight)
    target = model(inputs(config)).features
    torch.testing.assert_close(
        target.mean(dim=-1), torch.zeros(target.shape[:2]), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        target.var(dim=-1, unbiased=False), torch.ones(target.shape[:2]), atol=1e-3, rtol=0
    )
