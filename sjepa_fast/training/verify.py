# SPDX-License-Identifier: Apache-2.0
"""`--verify`: chosen steps are done twice from the same state, and all that they make is compared.

A step draws its random numbers from counters and adds in a fixed order, so that a second time gives
the same bits. Where it does not, memory or arithmetic has failed without an error.

What is compared never leaves the device: a tensor is represented by one integer, its `digest`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sjepa_fast.errors import RunStopped
from sjepa_fast.objectives.objective import Objective
from sjepa_fast.training.step import StepResult, TrainStep

# Odd, so that products modulo 2^64 can be undone: different bits give different products.
_PLACE, _FIRST, _SECOND = 0x9E3779B97F4A7C15 - 2**64, 0x2545F4914F6CDD1D, 0x5851F42D4C957F2D
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Elements.
_TOGETHER = 2**20
# Longer than any run.
_ONCE = 2**62


class Trace(NamedTuple):
    """Digests of all that one pass through a step had and made, in the order of its computation."""

    names: list[str]
    digests: Tensor


def digest(*tensors: Tensor) -> Tensor:
    """Return an int64 for each tensor, (tensors,), that depends on its every bit and their places.

    The sum modulo 2^64 of a mixture of each element's bits and its number, counted through all the
    tensors (our choice): a change of one element always changes it, and two changes cancel no more
    often than random numbers do.
    """
    bits = [_bits(tensor) for tensor in tensors]
    found: list[Tensor] = []
    while len(found) < len(bits):
        # Small tensors are mixed together, for fewer launches; large ones alone, for less memory.
        group, size = [bits[len(found)]], len(bits[len(found)])
        for more in bits[len(found) + 1 :]:
            size += len(more)
            if size > _TOGETHER:
                break
            group.append(more)
        flat_N = torch.cat([x.to(torch.int64) for x in group])
        place_N = torch.arange(1, len(flat_N) + 1, device=flat_N.device).mul_(_PLACE)
        mixed_N = place_N.add_(flat_N).mul_(_FIRST)
        # The shift of torch fills with the sign; without it nothing of the element is lost.
        mixed_N ^= (mixed_N >> 32) & 0xFFFFFFFF
        mixed_N.mul_(_SECOND)
        found += [part.sum() for part in mixed_N.split([len(x) for x in group])]
    return torch.stack(found)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).view(_BITS[tensor.element_size()])


def state_of(step: TrainStep) -> dict[str, Tensor]:
    """Return every tensor that a step changes or computes from, by part and name.

    In the order in which a step writes them, so that the first that differs is where it began.
    """
    model = step.model
    weights = dict(model.named_parameters())
    trained = {name: x for name, x in weights.items() if x.requires_grad}
    found = {
        f"{key} of {name}": step.optimizer.state[weight][key]
        for key in ("exp_avg", "exp_avg_sq", "step")
        for name, weight in trained.items()
    }
    found |= {f"weights {name}": x for name, x in trained.items()}
    found |= {f"half-precision {name}": x for name, x in _halves(model).items()}
    found |= {f"ema {name}": x for name, x in weights.items() if not x.requires_grad}
    found |= {
        name if name == "center" else f"buffer {name}": x for name, x in model.named_buffers()
    }
    # Counters, schedules' values and the losses of the last steps.
    return found | {name: x for name, x in vars(step).items() if isinstance(x, Tensor)}


def _halves(model: Objective) -> dict[str, Tensor]:
    """Return the tensors that only half-precision copies have, by the originals' names."""
    shared = {id(x) for x in (*model.parameters(), *model.buffers())}
    return {
        f"{network}.{name}": x
        for network in ("view_encoder", "predictor", "target_encoder")
        if (copy := model.network(network)) is not None
        for name, x in (*copy.named_parameters(), *copy.named_buffers())
        if id(x) not in shared
    }


class VerifiedStep:
    """A training step that does some of its calls twice (`runtime.verify`), with the same result.

    Where it does, the call costs twice its time, and a copy of weights and moments in the device's
    memory; such calls are never replays of a CUDA graph. With several processes the second call of
    a start is the first that is compared: the wrapper that averages gradients arranges its sums
    anew after the first.

    Args:
        step: The step.
        when: `runtime.verify`.
        resumed: Whether this start goes on from a checkpoint.
    """

    def __init__(self, step: TrainStep, when: str, *, resumed: bool) -> None:
        self.step = step
        self.every = interval(when, resumed=resumed)
        # How many calls of this start there were, without those that cannot be compared.
        self.calls = -1 if step.world.size > 1 else 0

    def __call__(self, ids_B: Tensor) -> StepResult:
        """Train on clips `ids_B`; raises RunStopped, in all processes, if the device has failed."""
        due = self.every > 0 and self.calls >= 0 and self.calls % self.every == 0
        result = self._if_it_fits(ids_B) if due else self.step(ids_B)
        # Not if it fails: what can go on without the compiler calls again.
        self.calls += 1
        return result

    def _if_it_fits(self, ids_B: Tensor) -> StepResult:
        """Verify a call, or, where its copies do not fit beside the step, do it as any other."""
        state = state_of(self.step)
        before: list[Tensor] = []
        try:
            before = [tensor.detach().clone() for tensor in state.values()]
            return self._verified(ids_B, state, before)
        except torch.OutOfMemoryError:
            # Other processes are in the same step, and would wait for this one.
            if self.step.world.size > 1:
                raise
        # Outside of the block above, whose traceback keeps the tensors alive.
        if before:
            _put_back(state, before)
            del before
        self.step.forget()
        torch.cuda.empty_cache()
        self.every = 0
        text = "runtime.verify: copies for it do not fit into the memory, so nothing is verified"
        warnings.warn(text, RuntimeWarning, stacklevel=3)
        return self.step(ids_B)

    def _verified(
        self, ids_B: Tensor, state: dict[str, Tensor], before: list[Tensor]
    ) -> StepResult:
        first, _ = self._trace(ids_B)
        _put_back(state, before)
        second, result = self._trace(ids_B)
        worst = self._first_difference(first, second)
        if worst is None:
            return result
        # Which of the two was wrong, or neither?
        _put_back(state, before)
        third, result = self._trace(ids_B)
        self._judge(worst, [first, second, third], ids_B.device)
        return result

    def _trace(self, ids_B: Tensor) -> tuple[Trace, StepResult]:
        state = state_of(self.step)
        start = digest(*state.values())
        with _gradients(self.step) as gradients:
            result = self.step.eager(ids_B)
        end = digest(result.grad_norm, *state.values())
        made = [name for name, _ in gradients]
        names = [f"{name}, before it" for name in state]
        names += ["loss", *made, "gradient norm", *state]
        parts = [start, digest(result.loss), *(found for _, found in gradients), end]
        return Trace(names, torch.cat(parts)), result

    def _first_difference(self, one: Trace, other: Trace) -> str | None:
        """Name what differs first, and in which process; the same answer in all processes."""
        world, count = self.step.world, len(one.names)
        differs = one.digests != other.digests
        # How many names are left from the first difference on, 0 without one; a place a process.
        left = torch.where(differs.any(), count - differs.int().argmax(), 0)
        lefts = torch.zeros(world.size, dtype=torch.int64, device=left.device)
        lefts[world.rank] = left
        found = world.sum_(lefts).tolist()
        if max(found) == 0:
            return None
        name = one.names[count - max(found)]
        return name if world.size == 1 else f"{name} in process {found.index(max(found))}"

    def _judge(self, worst: str, traces: list[Trace], device: torch.device) -> None:
        """Stop if two of three passes agree everywhere, or on a CPU, where all have to."""
        first, second, third = traces
        agreed = None in (
            self._first_difference(first, third),
            self._first_difference(second, third),
        )
        if agreed or device.type == "cpu":
            done = int(self.step.step)
            raise RunStopped(
                f"runtime.verify: step {done}, done again from the same state, had another result: "
                f"{worst} differs first; the step was not saved, memory or processor may be "
                "failing: go on elsewhere with --resume auto"
            )
        self.every = 0
        warnings.warn(
            f"runtime.verify: no two of three passes through a step agree, at first in {worst}; "
            f"this step does not repeat on {device}, so nothing is verified; "
            "--runtime.attention triton may repeat",
            RuntimeWarning,
            stacklevel=3,
        )


def interval(when: str, *, resumed: bool) -> int:
    """Return from which call of a start on, in calls, a step is verified; 0 is never."""
    known = {"off": 0, "every": 1, "first": _ONCE, "resume": _ONCE if resumed else 0}
    return known[when] if when in known else int(when)


def _put_back(state: dict[str, Tensor], before: list[Tensor]) -> None:
    with torch.no_grad():
        for tensor, value in zip(state.values(), before, strict=True):
            tensor.copy_(value)


@contextmanager
def _gradients(step: TrainStep) -> Iterator[list[tuple[str, Tensor]]]:
    """Collect digests of all gradients: as the backward makes them, and as the optimiser gets them.

    Between the two they are averaged over the processes, joined and clipped.
    """
    seen: list[tuple[str, Tensor]] = []
    weights = {name: x for name, x in step.model.named_parameters() if x.requires_grad}
    # Where a half-precision copy learns in the place of a weight, it is the one with a gradient.
    halves = {name: x for name, x in _halves(step.model).items() if x.requires_grad}

    def made(name: str) -> Any:
        return lambda x: seen.append((f"gradient of {name}", digest(x.grad)))

    def given(*_: object) -> None:
        for name, x in weights.items():
            if x.grad is not None:
                seen.append((f"gradient of {name}, for the update", digest(x.grad)))

    handles: list[Any] = [step.optimizer.register_step_pre_hook(given)]
    for name, x in (weights | halves).items():
        handles.append(x.register_post_accumulate_grad_hook(made(name)))  # type: ignore[no-untyped-call]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
