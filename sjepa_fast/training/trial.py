# SPDX-License-Identifier: Apache-2.0
"""A trial of a step: what needs its memory, without what changes its state."""

from __future__ import annotations

import contextlib
import sys

import torch
from torch import Tensor

from sjepa_fast.objectives.objective import make_step_input
from sjepa_fast.runtime.device import autocast
from sjepa_fast.training.step import TrainStep


def try_step(step: TrainStep, ids_B: Tensor) -> None:
    """Do forward and backward of the next step on clips `ids_B`, eagerly, and drop the gradients.

    With `optim.accumulate` those of one part are tried, for no other needs memory meanwhile.
    Weights, step counter and random numbers are as before, also if the memory does not suffice.
    """
    cuda = [ids_B.device] if ids_B.device.type == "cuda" else []
    # Whoever compiles has loaded the compiler, which takes seconds.
    compiles = "torch._dynamo" in sys.modules
    eagerly = torch.compiler.set_stance("force_eager") if compiles else contextlib.nullcontext()
    with eagerly, torch.random.fork_rng(devices=cuda):
        try:
            part = step.parts(ids_B)[0]
            batch = make_step_input(step.clips, part, step.seed, step.step, step.config)
            with autocast(ids_B.device, step.dtype):
                # Not through the wrapper of several processes, which would wait for the others.
                output = step.model(batch)
            output.loss.backward()
        finally:
            step.forget()
