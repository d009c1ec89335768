# SPDX-License-Identifier: Apache-2.0
"""One training step: crop, view, mask, forwards, loss, backward, AdamW, EMA, center.

All its tensors, also the step counter and the schedules, are on the device, and it never
synchronises: it can be captured as one CUDA graph. A step whose loss or gradient is not finite
changes nothing but the counter; that too is decided on the device.
Shapes: B clips of this process, M bodies, N tokens, D width, S steps of the run.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sjepa_fast.build import compile_blocks
from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.data.clips import ResidentClips
from sjepa_fast.models.shadow import TrainedShadows
from sjepa_fast.models.transformer import set_gpu_forms
from sjepa_fast.objectives.distinct import Encoded
from sjepa_fast.objectives.objective import (
    Objective,
    StepInput,
    StepOutput,
    make_step_input,
    mask_again,
)
from sjepa_fast.runtime.device import autocast, wants_compile, wants_graph
from sjepa_fast.runtime.dist import World
from sjepa_fast.runtime.graph import WARMUP, WARMUP_OF_SEVERAL, StepGraph
from sjepa_fast.runtime.schedule import Schedule
from sjepa_fast.training.memory import recomputes
from sjepa_kernels import EmaPlan, update_center_


@dataclass(frozen=True)
class StepResult:
    """Device tensors of one step: 0-dim loss and gradient norm, and the features to watch.

    With `optim.accumulate` the features are those of the batch's last part.
    """

    loss: Tensor
    grad_norm: Tensor
    encoded: Encoded

    @property
    def features(self) -> Tensor:
        """What `Encoded.features` returns."""
        return self.encoded.features()


class TrainStep:
    """The step of one process; call it with the clips of the batch.

    `step` counts the steps already done; it chooses rate and momentum and enters the random draws.
    With `objective.target_every` a call is that many steps on these clips.
    """

    def __init__(
        self,
        config: TrainConfig,
        clips: ResidentClips,
        model: Objective,
        optimizer: torch.optim.Optimizer,
        dtype: torch.dtype,
        world: World,
        schedule: Schedule,
        step: int = 0,
    ) -> None:
        device = clips.joints_RVC.device
        self.config, self.clips, self.model, self.optimizer = config, clips, model, optimizer
        self.dtype, self.world, self.schedule = dtype, world, schedule
        self.seed = torch.tensor(config.seed, device=device)
        self.step = torch.tensor(step, device=device)
        self.rate = torch.zeros((), device=device)
        # 1 where the step must change nothing. The fused AdamW reads it, and then leaves weights,
        # moments and step counts as they are.
        self.skip = torch.zeros((), device=device)
        optimizer.found_inf = self.skip  # type: ignore[attr-defined]
        for group in optimizer.param_groups:
            group["lr"] = self.rate
        self.weights = [p for p in model.parameters() if p.requires_grad]
        # Ring buffer of (loss, gradient norm, whether the step was skipped), long enough for the
        # steps between two log lines.
        self.history_W3 = torch.zeros(config.log.every, 3, device=device)
        # Before copies are made of the networks.
        keep = not recomputes(config, clips.layout.num_joints, device, dtype, world.size)
        for network in (model.view_encoder, model.predictor, model.target_encoder):
            if network is not None:
                set_gpu_forms(network.blocks, config.runtime.attention, keep)
        self.ema = [] if model.target_encoder is None else plan_ema(model, dtype)
        self.shadows: TrainedShadows | None = None
        if shadows_trained(device, dtype, world):
            self.shadows = shadow_trained(model, dtype)
        self.compiles = False
        if wants_compile(config.runtime.compile, device):
            self.compiles = compile_blocks(model, config)
        several = world.size > 1
        captures = wants_graph(config.runtime.cuda_graph, device, world.size)
        # Gradients are added up on the stream on which the wrapper was made: that of a capture.
        stream = torch.cuda.Stream() if captures and several else None
        self.objective: nn.Module = model
        if several:
            with contextlib.nullcontext() if stream is None else torch.cuda.stream(stream):
                self.objective = DistributedDataParallel(model)
        self.graph: StepGraph[StepResult] | None = None
        if captures:
            # By a weak reference: a cycle would keep the model's memory until Python looks for one.
            weak = weakref.proxy(self)
            self.graph = StepGraph(
                lambda ids_B: weak.eager(ids_B),
                required=config.runtime.cuda_graph == "on",
                reset=lambda: weak.forget(),
                stream=stream,
                warmup=WARMUP_OF_SEVERAL if several else WARMUP,
            )

    @property
    def beginning(self) -> tuple[str, int]:
        """What the first calls do besides a step, in a word, and how many calls these are."""
        calls = 1 if self.graph is None else self.graph.warmup + 1
        if self.compiles:
            return "compiling", calls
        return ("first step" if self.graph is None else "capturing"), calls

    def __call__(self, ids_B: Tensor) -> StepResult:
        """Train on the clips `ids_B`, int64 on the device; the next call overwrites the result."""
        return self.eager(ids_B) if self.graph is None else self.graph(ids_B)

    def recent(self, end: int, count: int) -> Tensor:
        """Loss, gradient norm and 1 for a skipped step, of `count` steps before `end`, (count, 3).

        At most `log.every` steps are kept.
        """
        slots = [s % len(self.history_W3) for s in range(end - count, end)]
        return self.history_W3[slots]

    def remember(self, recent_K3: Tensor, end: int) -> int:
        """Take over the history of the steps before step `end`, which a resumed run did.

        Returns of how many: those since the last step that this run logs, if the other logged less.
        """
        count = min(len(recent_K3), end % len(self.history_W3))
        slots = [s % len(self.history_W3) for s in range(end - count, end)]
        self.history_W3[slots] = recent_K3[len(recent_K3) - count :].to(self.history_W3)
        return count

    def forget(self) -> None:
        """Drop all gradients."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.shadows is not None:
            self.shadows.forget()

    def eager(self, ids_B: Tensor) -> StepResult:
        """Do one step eagerly, also where calls replay a graph.

        With `objective.target_every` that many: they belong together, and a run is saved between
        calls only. With `optim.accumulate` the clips are split into that many parts.
        """
        parts, together = self.parts(ids_B), self.config.objective.target_every
        if together == 1:
            # Made one after the other: the tokens of one part are there at a time.
            return self._train_on(map(self._input, parts), len(parts))
        batches = [self._with_targets(self._input(ids)) for ids in parts]
        result = self._train_on(batches, len(parts))
        for _ in range(1, together):
            again = zip(batches, parts, strict=True)
            masked = (mask_again(batch, *self._keys(ids)) for batch, ids in again)
            result = self._train_on(masked, len(parts))
        return result

    def parts(self, ids_B: Tensor) -> tuple[Tensor, ...]:
        """Split the clips of a batch into those that go through the networks together."""
        return ids_B.chunk(self.config.optim.accumulate)

    def _keys(self, ids_B: Tensor) -> tuple[ResidentClips, Tensor, Tensor, Tensor, TrainConfig]:
        return self.clips, ids_B, self.seed, self.step, self.config

    def _input(self, ids_B: Tensor) -> StepInput:
        return make_step_input(*self._keys(ids_B), world=self.world)

    def _with_targets(self, batch: StepInput) -> StepInput:
        with autocast(batch.view_BNP.device, self.dtype):
            return replace(batch, targets=self.model.make_targets(batch))

    def _train_on(self, batches: Iterable[StepInput], parts: int) -> StepResult:
        loss, center_sum, center_count, encoded = None, None, 0, None
        for number, batch in enumerate(batches, start=1):
            output = self._backward(batch, parts, last=number == parts)
            loss = output.loss if loss is None else loss + output.loss
            if output.center_sum is not None:
                center_count += output.center_count
                center_sum = (
                    output.center_sum if center_sum is None else center_sum + output.center_sum
                )
            encoded = output.encoded
            del output
        assert loss is not None and encoded is not None
        norm = self._update(loss, center_sum, center_count)
        return StepResult(loss, norm, encoded)

    def _backward(self, batch: StepInput, parts: int, *, last: bool) -> StepOutput:
        """Add a part's gradients to those of the parts before; return its share of the loss.

        Every part has as many rows in its loss, so the batch's loss is the mean of theirs.
        """
        waits: AbstractContextManager[None] = contextlib.nullcontext()
        if isinstance(self.objective, DistributedDataParallel) and not last:
            # The processes average their gradients once, after the last part.
            waits = self.objective.no_sync()
        with waits:
            with autocast(batch.view_BNP.device, self.dtype):
                output: StepOutput = self.objective(batch)
            loss = output.loss if parts == 1 else output.loss / parts
            loss.backward()
        if self.shadows is not None:
            self.shadows.hand_over()
        return replace(output, loss=loss.detach())

    def _update(self, loss: Tensor, center_sum: Tensor | None, center_count: int) -> Tensor:
        """Move everything by the gradients that are there, or nothing if one is not finite.

        A step skipped so counts in the schedules like any other (our choice). Returns the norm of
        the gradients.
        """
        config, model = self.config, self.model
        at = self.step.view(1)
        grads = [p.grad for p in self.weights if p.grad is not None]
        norm = nn.utils.get_total_norm(grads, foreach=True)
        # The norm is the same in all processes, the loss is not: all must skip, or none.
        total = self.world.sum_(loss + norm)
        bad = (total - total).ne(0)
        self.skip.copy_(bad)
        if config.optim.clip_grad > 0:
            nn.utils.clip_grads_with_norm_(self.weights, config.optim.clip_grad, norm, foreach=True)
        self.rate.copy_(self.schedule.rates_S.index_select(0, at).squeeze(0))
        self.optimizer.step()
        self.forget()
        if self.shadows is not None:
            self.shadows.round()
        if self.ema:
            # With momentum 1 the target encoder stays as it is.
            planned = self.schedule.momenta_S.index_select(0, at).squeeze(0)
            momentum = torch.maximum(planned, self.skip)
            for plan in self.ema:
                plan.update_(momentum)
        if model.center is not None and center_sum is not None:
            self.world.sum_(center_sum)
            before, count = model.center.clone(), center_count * self.world.size
            update_center_(model.center, center_sum, count, config.objective.center_momentum)
            torch.where(bad, before, model.center, out=model.center)
        slot = at % len(self.history_W3)
        row = torch.stack([loss, norm, self.skip])
        self.history_W3.index_copy_(0, slot, row.unsqueeze(0))
        self.step += 1
        return norm


def plan_ema(model: Objective, dtype: torch.dtype) -> list[EmaPlan]:
    """Plan the EMA of the target encoder: tensors with a half-precision shadow, and the others.

    Below float32, the compute precision `dtype`, the targets are computed with shadows.
    """
    assert model.target_encoder is not None
    shadows = {} if dtype == torch.float32 else model.shadow("target_encoder", dtype)
    targets = dict(model.target_encoder.named_parameters())
    sources = dict(model.view_encoder.named_parameters())
    rest = [name for name in targets if name not in shadows]
    plans = [EmaPlan([targets[n] for n in rest], [sources[n] for n in rest])]
    if shadows:
        halves = list(shadows.values())
        plans.append(EmaPlan([targets[n] for n in shadows], [sources[n] for n in shadows], halves))
    return plans


def shadows_trained(device: torch.device, dtype: torch.dtype, world: World) -> bool:
    """Whether the trained networks compute with half-precision copies of their weights.

    On one GPU below float32: there the rounding of each weight is a launch of its own, forwards and
    backwards. Several processes average the gradients of the networks themselves.
    """
    return device.type == "cuda" and dtype != torch.float32 and world.size == 1


def shadow_trained(model: Objective, dtype: torch.dtype) -> TrainedShadows:
    """Let half-precision copies of view encoder and predictor compute; return their weights.

    A projector stays in float32.
    """
    masters: list[Tensor] = []
    halves: list[Tensor] = []
    for name in ("view_encoder", "predictor"):
        if getattr(model, name) is None:
            continue
        own = dict(getattr(model, name).named_parameters())
        for path, half in model.shadow(name, dtype).items():
            masters.append(own[path])
            halves.append(half)
    return TrainedShadows(masters, halves)
