# SPDX-License-Identifier: Apache-2.0
"""A run before its first step: networks and optimiser, begun or resumed, and all they work on."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sjepa_fast.build import build_model, build_optimizer
from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.embedding.content import Content
from sjepa_fast.evaluation.features import nearest_neighbour
from sjepa_fast.evaluation.metrics import accuracy
from sjepa_fast.objectives.objective import Objective
from sjepa_fast.runtime.checkpoint import resume
from sjepa_fast.runtime.dist import World
from sjepa_fast.runtime.files import write_json
from sjepa_fast.runtime.preflight import preflight
from sjepa_fast.runtime.schedule import Schedule, tabulate
from sjepa_fast.training.continuing import start_from
from sjepa_fast.training.inputs import Inputs
from sjepa_fast.training.precision import pick_dtype


@dataclass(frozen=True)
class Setup:
    """What a run works with, and from where it goes on."""

    config: TrainConfig
    world: World
    device: torch.device
    dtype: torch.dtype
    why_dtype: str
    inputs: Inputs
    model: Objective
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    start: int  # steps that are done
    recent_K3: Tensor | None  # of a run that is resumed: steps that are in no row of metrics yet
    before: float  # 1-NN accuracy of the encoder as it was begun, in process 0; NaN without

    def neighbours(self) -> tuple[Tensor, float]:
        """Predict the test clips' labels by the nearest training clip; also the accuracy in %."""
        clips, test_ids = self.inputs.clips, self.inputs.test_ids
        guess = nearest_neighbour(
            self.model.eval_encoder, clips, self.inputs.knn_ids, test_ids, self.config, self.dtype
        )
        return guess, accuracy(guess, clips.labels_N[test_ids])


def set_up(
    config: TrainConfig,
    inputs: Inputs,
    world: World,
    device: torch.device,
    begins_with: Content | None,
) -> Setup:
    """Build a run and resume it, or begin it, with the weights of another where they are given."""
    dtype, reason = pick_dtype(config, inputs.store.layout.num_joints, device, world)
    config = preflight(config, device, dtype, world)
    model = build_model(config, inputs.clips, inputs.train_ids, device)
    optimizer = build_optimizer(model, config)
    resumed = resume(config.run, model, optimizer, world)
    start, recent_K3 = (0, None) if resumed is None else resumed
    setup = Setup(
        config=config,
        world=world,
        device=device,
        dtype=dtype,
        why_dtype=reason,
        inputs=inputs,
        model=model,
        optimizer=optimizer,
        schedule=tabulate(config, inputs.total, inputs.warmup, device),
        start=start,
        recent_K3=recent_K3,
        before=math.nan,
    )
    if resumed is not None:
        return setup
    if begins_with is not None:
        start_from(begins_with, model, config, world)
    if not world.leads or inputs.unscored is not None:
        return setup
    _, before = setup.neighbours()
    write_json(config.run / "results" / "knn-before.json", {"top1": before})
    return dataclasses.replace(setup, before=before)
