"""Trains on a device, writes down everything after each step, and says where two runs differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sjepa_fast.build import build_model, build_optimizer
from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.data.clips import ResidentClips
from sjepa_fast.runtime.checkpoint import Checkpoint, load_state, load_weights
from sjepa_fast.runtime.dist import World
from sjepa_fast.runtime.schedule import tabulate
from sjepa_fast.training.step import TrainStep

GPU = torch.device("cuda")
# The first calls are eager, the fourth captures and replays, the others replay.
WARM_UP, CALLS = 3, 7
NETWORKS = ("view_encoder", "predictor", "target_encoder")
State = dict[str, Tensor]


def make_step(
    config: TrainConfig,
    clips: ResidentClips,
    device: torch.device,
    dtype: torch.dtype,
    resume: Checkpoint | None = None,
) -> TrainStep:
    """The step as a run has it that begins or resumes; rate and momentum change with each call."""
    moved = {
        field.name: getattr(clips, field.name).to(device)
        for field in dataclasses.fields(clips)
        if isinstance(getattr(clips, field.name), Tensor)
    }
    clips = dataclasses.replace(clips, **moved)
    model = build_model(config, clips, torch.arange(len(clips.frames_N), device=device), device)
    optimizer = build_optimizer(model, config)
    if resume is not None:
        load_weights(resume, model)
        load_state(resume, optimizer)
    schedule = tabulate(config, 4 * CALLS, CALLS - 2, device)
    done = 0 if resume is None else resume.step
    return TrainStep(config, clips, model, optimizer, dtype, World(), schedule, done)


def batch(step: TrainStep, number: int) -> Tensor:
    """Clips of a step: other ones, in another order, each time."""
    count = step.config.optim.batch_size
    ids = (torch.arange(count) * 5 + number) % len(step.clips.frames_N)
    return ids.to(step.seed.device)


def state(step: TrainStep) -> State:
    """All that a step changes: weights, EMA, their half-precision copies, center, moments, log."""
    found = {f"model.{name}": x for name, x in step.model.state_dict().items()}
    for name in NETWORKS:
        network, own = step.model.network(name), getattr(step.model, name)
        if network is not own:
            found |= {f"half.{name}.{key}": x for key, x in network.state_dict().items()}
    names = {id(x): name for name, x in step.model.named_parameters()}
    for weight, values in step.optimizer.state.items():
        found |= {f"{key}.{names[id(weight)]}": x for key, x in values.items()}
    found |= {"step": step.step, "rate": step.rate, "history": step.history_W3}
    return {name: x.detach().cpu().clone() for name, x in found.items()}


def trace(
    step: TrainStep, numbers: Sequence[int], before_each: Callable[[], None] = lambda: None
) -> list[State]:
    """Loss, gradient norm and state after each step."""
    found = []
    for number in numbers:
        before_each()
        result = step(batch(step, number))
        numbers_of_step = {"loss": result.loss.cpu(), "grad_norm": result.grad_norm.cpu()}
        found.append({**{k: x.clone() for k, x in numbers_of_step.items()}, **state(step)})
    return found


def differences(found: State, expected: State, tolerance: float) -> list[str]:
    """What differs by more than `tolerance` times the largest number of the expected tensor."""
    assert found.keys() == expected.keys()
    lines = []
    for name, want in expected.items():
        got = found[name]
        if name.startswith("model.") and name.endswith("qkv.bias"):
            got, want = _without_keys(got), _without_keys(want)
        scale = float(want.abs().max()) if want.numel() else 0.0
        error = float((got.double() - want.double()).abs().max()) if want.numel() else 0.0
        # Not "error > ...", which NaN would pass.
        if not error <= tolerance * max(scale, 1e-3):
            lines.append(f"{name}: {error:.2e} of {scale:.2e}")
    return lines


def _without_keys(bias_3D: Tensor) -> Tensor:
    """Leave out the keys' biases: no loss depends on them, and Adam makes steps of rounding noise.

    A softmax does not see what is added to all its logits.
    """
    q, _, v = bias_3D.chunk(3)
    return torch.cat([q, v])


def relative_error(found: State, expected: State, start: State, prefix: str) -> float:
    """Error of all changes since `start` of what is named so, by the norm of these changes."""
    names = [n for n in expected if n.startswith(prefix) and not n.endswith("qkv.bias")]
    error = sum(float((found[n].double() - expected[n].double()).square().sum()) for n in names)
    change = sum(float((expected[n].double() - start[n].double()).square().sum()) for n in names)
    return float((error / change) ** 0.5)
