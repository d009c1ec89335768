"""Partial targets and the cross predictor in a training step of each objective."""

import dataclasses

import pytest
import torch

from sjepa_fast.config.schema import MaskConfig, TrainConfig, predicted_tokens, replace
from sjepa_fast.config.validation import validate
from sjepa_fast.errors import InputError
from sjepa_fast.objectives.masking import draw_predicted
from sjepa_fast.objectives.objective import StepInput
from sjepa_fast.skeletons import NTU25
from tests.tiny import NORMS, PREDICTING, drawn, objective, step_input


def config_of(kind: str = "sjepa", **sections: dict[str, object]) -> TrainConfig:
    base = replace(
        TrainConfig(),
        data={"frames": 12, "bodies": 2, "crop_min_frames": 4},
        model={"width": 32, "depth": 1, "heads": 2, "predictor_depth": 2},
        objective={"kind": kind, "target_norm": NORMS[kind], "target_layers": 1},
    )
    return replace(base, **sections)


def inputs(config: TrainConfig, step: int = 0) -> StepInput:
    return step_input(config, drawn([2] * 3, [12] * 3, NTU25, seed=1), step)


def test_part_of_the_same_mask_is_predicted_and_the_default_is_all_of_it() -> None:
    whole = inputs(config_of())
    part = inputs(config_of(mask={"predict_ratio": 0.25}))
    assert torch.equal(part.ids_keep_BK, whole.ids_keep_BK)
    assert whole.ids_mask_BQ.shape == (6, 67) and part.ids_mask_BQ.shape == (6, 17)
    for chosen, masked in zip(part.ids_mask_BQ.tolist(), whole.ids_mask_BQ.tolist(), strict=True):
        assert chosen == sorted(set(chosen)) and set(chosen) <= set(masked)
    assert len({tuple(row) for row in part.ids_mask_BQ.tolist()}) == 6, "bodies differ"
    later = inputs(config_of(mask={"predict_ratio": 0.25}), step=1)
    assert not torch.equal(later.ids_mask_BQ, part.ids_mask_BQ)


def test_every_masked_token_is_predicted_equally_often() -> None:
    masked = torch.arange(100, 140).expand(2, -1)
    seed, ids = torch.tensor(3), torch.tensor([9])
    ratio = MaskConfig(predict_ratio=0.3)
    draws = 600
    counts = torch.zeros(2, 40)
    for step in range(draws):
        chosen = draw_predicted(masked, ids, 2, seed, torch.tensor(step), ratio, purpose=70_000)
        counts.scatter_add_(1, chosen - 100, torch.ones(2, 12))
    spread = (draws * 0.3 * 0.7) ** 0.5
    assert (counts - draws * 0.3).abs().max() < 4.5 * spread
    assert counts.sum() == 2 * 12 * draws


@pytest.mark.parametrize(("ratio", "expected"), [(1.0, 40), (0.3, 12), (0.51, 20), (0.001, 1)])
def test_count_of_predicted_tokens(ratio: float, expected: int) -> None:
    assert predicted_tokens(MaskConfig(predict_ratio=ratio), 40) == expected


@pytest.mark.parametrize("kind", PREDICTING)
def test_losses_of_two_halves_average_to_the_whole_with_the_cross_predictor(kind: str) -> None:
    """Tokens are predicted one by one, so a part's loss is the mean over that part."""
    model = objective(config_of(kind, model={"predictor": "cross"}))
    whole = inputs(config_of(kind, mask={"ratio": 0.8}))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    ids = whole.ids_mask_BQ[:, order]
    losses = [
        model(dataclasses.replace(whole, ids_mask_BQ=part.contiguous())).loss
        for part in (ids[:, :20], ids[:, 20:])
    ]
    expected = model(whole).loss
    torch.testing.assert_close((losses[0] + 2 * losses[1]) / 3, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("kind", PREDICTING)
def test_gradients_reach_every_weight(kind: str, views: int) -> None:
    mask = {"predict_ratio": 0.4, "num_masked_views": views}
    config = config_of(kind, mask=mask, model={"predictor": "cross"})
    model, batch = objective(config), inputs(config)
    assert batch.ids_mask_BQ.shape == (6 * views, 27)
    model(batch).loss.backward()
    for name, weight in model.named_parameters():
        if not name.startswith("target_encoder"):
            assert weight.grad is not None and weight.grad.abs().sum() > 0, name


def test_views_of_a_clip_draw_apart() -> None:
    config = config_of(mask={"predict_ratio": 0.4, "num_masked_views": 2, "kind": "random"})
    rows = inputs(config).ids_mask_BQ.view(6, 2, -1)
    assert not torch.equal(rows[:, 0], rows[:, 1])


@pytest.mark.parametrize(
    ("sections", "argument"),
    [
        ({"mask": {"predict_ratio": 0.0}}, "mask.predict_ratio"),
        ({"mask": {"predict_ratio": 1.5}}, "mask.predict_ratio"),
    ],
)
def test_impossible_settings_are_refused(
    sections: dict[str, dict[str, object]], argument: str
) -> None:
    with pytest.raises(InputError, match=argument):
        validate(config_of(**sections))


@pytest.mark.parametrize(
    "sections", [{"mask": {"predict_ratio": 0.5}}, {"model": {"predictor": "cross"}}]
)
def test_the_authors_misplaced_layout_needs_the_whole_grid(
    sections: dict[str, dict[str, object]],
) -> None:
    legacy = replace(
        config_of("skeleton2vec"),
        mask={"kind": "tube", "tube_length": 3},
        objective={"legacy_tube_layout": True},
    )
    validate(legacy)
    with pytest.raises(InputError, match="legacy_tube_layout"):
        validate(replace(legacy, **sections))
