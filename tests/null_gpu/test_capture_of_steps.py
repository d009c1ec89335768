"""What a step does around its capture: resumed optimisers, and captures that fail."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks.steps import ntu_like_clips
from sjepa_fast.config.schema import TrainConfig, replace
from sjepa_fast.runtime.checkpoint import list_checkpoints, load_state, save_checkpoint
from sjepa_fast.training.step import TrainStep
from tests.null_gpu import gpu
from tests.null_gpu.steps import (
    GPU,
    WARMUP,
    call,
    configured,
    make_step,
    shape_of,
    waits_and_host_copies,
)
from tests.tiny import CPU, STEP_CONFIG

CONFIG = configured(replace(STEP_CONFIG, data={"bodies": 2}), compiled="off", batch=4)


@pytest.fixture(autouse=True)
def stream_as_before() -> Iterator[None]:
    """Each test ends on the stream on which it began, also where a capture failed."""
    before = torch.cuda.current_stream()
    yield
    after = torch.cuda.current_stream()
    torch.cuda.set_stream(before)
    assert after == before, "work now runs on the stream of the capture"


def tiny_step(config: TrainConfig = CONFIG, device: torch.device = GPU) -> TrainStep:
    return make_step(config, ntu_like_clips(16, device), torch.float32)


@pytest.mark.parametrize("begun_on", [CPU, GPU], ids=["cpu", "gpu"])
def test_a_resumed_step_is_captured(begun_on: torch.device, tmp_path: Any) -> None:
    """The optimiser of a CPU run holds its step counts where no graph could advance them."""
    free = replace(CONFIG, runtime={"cuda_graph": "auto"})
    begun = tiny_step(free, begun_on)
    begun(torch.arange(4, device=begun_on))
    save_checkpoint(tmp_path, 1, begun.model, begun.optimizer, keep=1)
    (saved,) = list_checkpoints(tmp_path)
    step = tiny_step()
    load_state(saved, step.optimizer)
    state = next(iter(step.optimizer.state.values()))
    assert state["step"].device.type == "cuda"
    for _ in range(WARMUP):
        call(step)
    capture = call(step)
    assert gpu.problems() == []
    assert [r.kind for r in capture].count("graph_launch") == 1
    assert [r.kind for r in call(step)] == ["copy", "graph_launch"]


def break_in_capture(step: TrainStep, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Let the optimiser read a value where it is captured; note for each step if gradients wait."""
    assert step.graph is not None
    update, eager = step.optimizer.step, step.graph.step
    waiting = []

    def broken(*arguments: Any) -> Any:
        if torch.cuda.is_current_stream_capturing():
            torch.zeros((), device=GPU).item()
        return update(*arguments)

    def noted(ids_B: torch.Tensor) -> Any:
        waiting.append(any(p.grad is not None for p in step.weights))
        return eager(ids_B)

    monkeypatch.setattr(step.optimizer, "step", broken)
    monkeypatch.setattr(step.graph, "step", noted)
    return waiting


def test_after_a_failed_capture_steps_go_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    step = tiny_step(replace(CONFIG, runtime={"cuda_graph": "auto"}))
    waiting = break_in_capture(step, monkeypatch)
    for _ in range(WARMUP):
        call(step)
    with pytest.warns(UserWarning, match="going on without") as said:
        call(step)
    (warning,) = said
    assert "operation not permitted when stream is capturing" in str(warning.message)
    for _ in range(2):
        assert "graph_launch" not in [r.kind for r in call(step)]
        assert gpu.problems() == []
    # Warm-up, the capture, the step instead of it, and two more.
    assert waiting == [False] * (WARMUP + 4)
    assert torch.rand(3, device=GPU).shape == (3,)
    assert torch.randperm(5, device=GPU).shape == (5,)


def test_a_failed_capture_is_an_error_where_it_is_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = tiny_step()
    break_in_capture(step, monkeypatch)
    for _ in range(WARMUP):
        call(step)
    with pytest.raises(RuntimeError, match="captur"):
        call(step)
    torch.randn(3, device=GPU)


def test_a_capture_that_runs_out_of_memory_leaves_none_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = tiny_step(replace(CONFIG, runtime={"cuda_graph": "auto"}))
    update = step.optimizer.step
    total = torch.cuda.get_device_properties(0).total_memory

    def greedy(*arguments: Any) -> Any:
        if torch.cuda.is_current_stream_capturing():
            torch.empty(total, dtype=torch.uint8, device=GPU)
        return update(*arguments)

    monkeypatch.setattr(step.optimizer, "step", greedy)
    for _ in range(WARMUP):
        call(step)
    before = torch.cuda.memory_allocated()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        call(step)
    assert any("out of memory" in str(warning.message) for warning in said)
    call(step)
    assert torch.cuda.memory_allocated() <= before + 2**20


def becomes_one_launch(config: TrainConfig) -> None:
    step = make_step(config, ntu_like_clips(16, GPU), torch.bfloat16)
    for number in range(WARMUP):
        records = call(step)
        assert gpu.problems() == []
        if number > 0:
            assert waits_and_host_copies(records) == []
    captured = [record for record in call(step) if record.captured]
    assert gpu.problems() == [] and step.graph is not None and step.graph.graph is not None
    again = shape_of([r for r in records if r.kind not in ("malloc", "free")])
    assert shape_of(captured) == again
    copy, launch = call(step)
    assert (copy.kind, launch.kind) == ("copy", "graph_launch")


@pytest.mark.parametrize("every", [1, 2], ids=["a step", "steps that share targets"])
def test_a_batch_in_parts_is_captured_whole(every: int) -> None:
    """Gradients of half-precision weights add up in float32, and the skip is decided once."""
    sections: dict[str, Any] = {"objective": {"target_every": every}}
    becomes_one_launch(replace(CONFIG, optim={"batch_size": 4, "accumulate": 2}, **sections))


@pytest.mark.parametrize("regularizer", ["sigreg", "visreg", "vicreg"])
def test_a_regularizer_is_captured_with_the_step(regularizer: str) -> None:
    """Of steps that share targets each has directions of its own, drawn on the device."""
    sections: dict[str, Any] = {"objective": {"target_every": 2, "regularizer": regularizer}}
    becomes_one_launch(replace(CONFIG, **sections))
