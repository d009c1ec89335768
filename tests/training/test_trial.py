"""A trial of a step needs its memory and changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch

from sjepa_fast.training.step import TrainStep
from sjepa_fast.training.trial import try_step
from tests.training.test_step import make_step


def states(step: TrainStep) -> list[torch.Tensor]:
    """All that a step changes."""
    moments = [x for state in step.optimizer.state.values() for x in state.values()]
    found = [*step.model.parameters(), *step.model.buffers(), *moments, step.step, step.history_W3]
    return copy.deepcopy([x.detach() for x in found])


def test_after_a_trial_the_first_steps_are_those_of_a_run_without() -> None:
    ids = torch.arange(6)
    plain, tried = make_step(), make_step()
    torch.manual_seed(7)
    random = torch.get_rng_state()
    before = states(tried)
    try_step(tried, ids)
    assert all(torch.equal(x, y) for x, y in zip(before, states(tried), strict=True))
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in tried.weights)
    for _ in range(3):
        assert torch.equal(plain(ids).loss, tried(ids).loss)
    pairs = zip(states(plain), states(tried), strict=True)
    assert all(torch.equal(x, y) for x, y in pairs)


def test_a_trial_does_forward_and_backward_and_leaves_no_gradient_where_it_fails() -> None:
    """Before the memory ends, some gradients are there already."""
    step, seen = make_step(), []
    weights = step.weights

    def fail(_: torch.Tensor) -> None:
        seen.append(sum(p.grad is not None for p in weights))
        if seen[-1] == len(weights) // 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    for weight in weights:
        weight.register_post_accumulate_grad_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        try_step(step, torch.arange(6))
    assert max(seen) == len(weights) // 2
    assert all(p.grad is None for p in weights)


def test_a_trial_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("compiled")

    step = make_step()
    for block in step.model.predictor.blocks:
        block.compile(backend=fail)
    try_step(step, torch.arange(6))
    with pytest.raises(Exception, match="compiled"):
        step(torch.arange(6))
