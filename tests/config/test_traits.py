"""The table of objectives says what the networks that are built turn out to be."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest
import torch

from sjepa_fast.build import OBJECTIVES
from sjepa_fast.config.schema import ObjectiveConfig, TrainConfig, replace
from sjepa_fast.config.traits import TRAITS
from sjepa_fast.objectives.objective import StepInput
from sjepa_fast.skeletons import KINECT15
from sjepa_fast.training.flops import step_flops
from tests.tiny import AIMS


def test_configuration_table_and_classes_know_the_same_objectives() -> None:
    kinds = get_args(get_type_hints(ObjectiveConfig)["kind"])
    assert set(kinds) == set(TRAITS) == set(OBJECTIVES)


@pytest.mark.parametrize("kind", TRAITS)
def test_traits_are_what_is_built(kind: str) -> None:
    """A wrong row would change masks, targets or FLOPs of that objective without an error."""
    traits = TRAITS[kind]
    config = replace(
        TrainConfig(),
        data={"frames": 8},
        model={"segment_length": 2, "width": 12, "depth": 2, "heads": 2, "predictor_depth": 1},
        objective={**AIMS[kind], "target_layers": 2},
    )
    model = OBJECTIVES[kind](config, KINECT15)
    assert (model.target_encoder is not None) == traits.target_encoder
    predicts = model.predictor is not None
    assert predicts == (step_flops(config, 15).predictor > 0) == (traits.predicts != "nothing")
    if predicts:
        assert model.predictor.proj_out.out_features == traits.outputs(config.model)
    assert (step_flops(config, 15).target_encoder > 0) == traits.target_encoder

    view, clip = torch.randn(2, 2, 60, 6)
    order = torch.stack([torch.randperm(60) for _ in range(2)]).int()

    def loss(clip_BNP: torch.Tensor) -> torch.Tensor:
        batch = StepInput(view, clip_BNP, order[:, :6], order[:, 6:])
        with torch.no_grad():
            found: torch.Tensor = model(batch).loss
        return found

    # An objective with masks from the view alone is never given another clip, so it may read
    # either; one with masks from the clip has to read it.
    if traits.masks_from == "clip":
        assert loss(clip) != loss(clip + 1)
    for norm in traits.target_norms:
        assert OBJECTIVES[kind](replace(config, objective={"target_norm": norm}), KINECT15)
