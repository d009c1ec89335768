"""A step whose loss or gradient is not finite changes nothing, and the run goes on."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch

from sjepa_fast.config.traits import TRAITS
from sjepa_fast.objectives.objective import StepOutput
from sjepa_fast.training.step import TrainStep
from tests.training.test_step import OTHERS, make_step

IDS = torch.arange(6)
KINDS = list(TRAITS)


def state(step: TrainStep) -> dict[str, torch.Tensor]:
    """All that a step changes but the counter, the rate and the history."""
    found = dict(step.model.state_dict())
    names = {id(p): name for name, p in step.model.named_parameters()}
    for weight, values in step.optimizer.state.items():
        found |= {f"{key} of {names[id(weight)]}": x for key, x in values.items()}
    for plan in step.ema:
        found |= {f"shadow {k}": shadow for k, shadow in enumerate(plan.shadows)}
    return copy.deepcopy({name: x.detach() for name, x in found.items()})


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> list[str]:
    assert before.keys() == after.keys()
    return [name for name, x in before.items() if not torch.equal(x, after[name])]


def poison_loss(step: TrainStep, value: float) -> Callable[[], None]:
    def broken(_: object, __: object, output: StepOutput) -> StepOutput:
        return dataclasses.replace(output, loss=output.loss * value)

    return step.model.register_forward_hook(broken).remove


def poison_gradient(step: TrainStep, value: float) -> Callable[[], None]:
    weight = step.model.view_encoder.norm.weight
    return weight.register_hook(lambda grad: torch.full_like(grad, value)).remove


def poison_clip(step: TrainStep, value: float) -> Callable[[], None]:
    rows = step.clips.joints_RVC
    kept = rows[3].clone()
    rows[3] = value
    return lambda: rows[3].copy_(kept)


POISONS = {"loss": poison_loss, "gradient": poison_gradient, "clip": poison_clip}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("where", "value"),
    [("loss", torch.nan), ("gradient", torch.nan), ("gradient", torch.inf), ("clip", torch.nan)],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_is_not_finite_changes_nothing(
    kind: str, where: str, value: float, dtype: torch.dtype
) -> None:
    # Clipping multiplies all gradients by a factor that is not a number then.
    step = make_step(momentum=0.5, dtype=dtype, **OTHERS[kind])
    step(IDS)
    before = state(step)
    mend = POISONS[where](step, value)
    step(IDS)
    mend()
    assert changed(before, state(step)) == []
    assert step.step == 2, "it counts in the schedules"
    assert step.recent(2, 2)[:, 2].tolist() == [0, 1]
    result = step(IDS)
    moved = changed(before, state(step))
    assert step.recent(3, 3)[:, 2].tolist() == [0, 1, 0]
    assert torch.isfinite(torch.stack([result.loss, result.grad_norm])).all()
    # A fraction of the target's bfloat16 copies round to what they were.
    assert {name for name in before if "shadow" not in name} - set(moved) == set()


def test_steps_around_a_skipped_one_are_those_of_a_run_with_that_rate_and_momentum() -> None:
    """The optimiser's own count leaves the skipped step out, the schedules do not."""
    plain, skipping = make_step(momentum=0.5), make_step(momentum=0.5)
    for step in (plain, skipping):
        step(IDS)
    mend = poison_loss(skipping, torch.nan)
    skipping(IDS)
    mend()
    plain.step += 1
    for step in (plain, skipping):
        step(IDS)
    assert changed(state(plain), state(skipping)) == []


@pytest.mark.parametrize("kind", ["sjepa", "skeleton2vec"])
def test_steps_that_share_targets_are_judged_one_by_one(kind: str) -> None:
    sections = dict(OTHERS[kind])
    sections["objective"] = {**sections.get("objective", {}), "target_every": 3}
    step = make_step(momentum=0.5, **sections)
    states, done = [], step._update

    def watched(*args: object) -> torch.Tensor:
        norm = done(*args)
        states.append(state(step))
        return norm

    step._update = watched
    grads = iter([1.0, torch.nan, 1.0])
    step.model.predictor.mask_token.register_hook(lambda grad: grad * next(grads))
    step(IDS)
    assert step.recent(3, 3)[:, 2].tolist() == [0, 1, 0]
    assert changed(states[0], states[1]) == []
    assert "center" in changed(states[1], states[2]) or kind != "sjepa"
