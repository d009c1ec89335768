"""One training step: crop, view, mask, forwards, loss, backward, AdamW, EMA, centre.

Everything it reads and writes is on the device; nothing in it waits for the device.
Shapes: B clips of this process, M bodies, N tokens, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sjepa_fast.config import TrainConfig
from sjepa_fast.data.loader import ResidentClips
from sjepa_fast.objectives.objective import Objective, make_step_input
from sjepa_fast.runtime.device import autocast
from sjepa_fast.runtime.dist import World
from sjepa_kernels import EmaPlan, update_center_


@dataclass(frozen=True)
class StepResult:
    """Device tensors of one step: 0-dim loss and gradient norm, and the features to watch."""

    loss: Tensor
    grad_norm: Tensor
    features: Tensor


class TrainStep:
    """The step of one process; call it with the clips, the learning rate and the momentum.

    Args:
        config: The run's configuration.
        clips: Resident clips.
        model: The objective, on the clips' device.
        optimizer: Its optimiser.
        dtype: Compute precision.
        world: This process among all.
        step: Steps already done; keys the random draws.
    """

    def __init__(
        self,
        config: TrainConfig,
        clips: ResidentClips,
        model: Objective,
        optimizer: torch.optim.Optimizer,
        dtype: torch.dtype,
        world: World,
        step: int = 0,
    ) -> None:
        device = clips.joints_RVC.device
        self.config, self.clips, self.model, self.optimizer = config, clips, model, optimizer
        self.dtype, self.world = dtype, world
        self.seed = torch.tensor(config.seed, device=device)
        self.step = torch.tensor(step, device=device)
        self.ema: EmaPlan | None = None
        if model.target_encoder is not None:
            self.ema = EmaPlan(
                list(model.target_encoder.parameters()), list(model.view_encoder.parameters())
            )
        self.objective: nn.Module = model
        if world.size > 1:
            self.objective = DistributedDataParallel(model)

    def __call__(self, ids_B: Tensor, rate: float, momentum: float) -> StepResult:
        """Train on the clips `ids_B` (int64, on the device)."""
        config, model = self.config, self.model
        batch = make_step_input(self.clips, ids_B, self.seed, self.step, config)
        with autocast(ids_B.device, self.dtype):
            output = self.objective(batch)
        output.loss.backward()
        limit = config.optim.clip_grad or math.inf
        norm = nn.utils.clip_grad_norm_(model.parameters(), limit, foreach=True)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update_(momentum)
        if model.center is not None and output.center_sum is not None:
            self.world.sum_(output.center_sum)
            count = output.center_count * self.world.size
            beta = config.objective.center_momentum
            update_center_(model.center, output.center_sum, count, beta)
        self.step += 1
        return StepResult(output.loss.detach(), norm, output.features)
