"""The step as one CUDA graph: equal to the plain step, without a wait; and when it cannot be."""

import contextlib
import dataclasses
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sjepa_fast.build import build_model, build_optimizer
from sjepa_fast.config.schema import RuntimeConfig, TrainConfig
from sjepa_fast.data.clips import ResidentClips
from sjepa_fast.errors import InputError
from sjepa_fast.runtime.device import wants_graph
from sjepa_fast.runtime.dist import World
from sjepa_fast.runtime.graph import WARMUP_OF_SEVERAL, StepGraph
from sjepa_fast.runtime.schedule import tabulate
from sjepa_fast.training.step import TrainStep
from tests.tiny import CPU, STEP_CONFIG, step_clips, torchrun
from tests.training.test_step import make_step

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")
STEPS = 50
ALONE = World()
# Both processes of two GPUs train with and without the graph; the leader says how far apart.
WITH_NCCL = """
import torch
from sjepa_fast.runtime.dist import connect, disconnect, environment_world
from tests.test_cuda_graph import GPU, STEPS, on_gpu, with_graph

world = environment_world()
torch.cuda.set_device(world.local_rank)
connect(world, GPU)
losses = {}
for choice in ("off", "on"):
    step = on_gpu(with_graph(choice), world)
    ids = torch.arange(3, device=GPU) + 3 * world.rank
    losses[choice] = torch.stack([step(ids.roll(i)).loss.clone() for i in range(STEPS)])
    assert (step.graph is not None and step.graph.graph is not None) == (choice == "on")
torch.testing.assert_close(losses["on"], losses["off"], rtol=1e-5, atol=1e-6)
disconnect(world)
"""


def with_graph(choice: Any, **values: Any) -> TrainConfig:
    return dataclasses.replace(STEP_CONFIG, runtime=RuntimeConfig(cuda_graph=choice, **values))


@pytest.mark.parametrize(
    ("choice", "device", "size", "expected"),
    [
        ("auto", GPU, 1, True),
        ("auto", GPU, 2, False),
        ("auto", CPU, 1, False),
        ("off", GPU, 1, False),
        ("on", GPU, 1, True),
        ("on", GPU, 2, True),
        ("off", GPU, 2, False),
    ],
)
def test_where_the_step_becomes_a_graph(
    choice: Any, device: Any, size: int, expected: bool
) -> None:
    assert wants_graph(choice, device, size) is expected


@pytest.mark.parametrize("size", [1, 2])
def test_a_graph_that_cannot_be_is_refused(size: int) -> None:
    with pytest.raises(InputError, match="cuda-graph: on with cpu; leave it on auto"):
        wants_graph("on", CPU, size)


class Stream:
    """Stands in for a CUDA stream where there is none."""

    def wait_stream(self, other: object) -> None:
        """Nothing to wait for."""


@pytest.fixture
def broken_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nlong story")

    monkeypatch.setattr("torch.cuda.Stream", Stream)
    monkeypatch.setattr("torch.cuda.current_stream", Stream)
    monkeypatch.setattr("torch.cuda.stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr("torch.cuda.set_stream", lambda _: None)
    monkeypatch.setattr("torch.cuda.CUDAGraph", object)
    monkeypatch.setattr("torch.cuda.graph", fail)


@pytest.mark.usefixtures("broken_capture")
def test_a_failed_capture_goes_on_without_and_says_why_once(
    recwarn: pytest.WarningsRecorder,
) -> None:
    seen: list[int] = []

    def step(ids: torch.Tensor) -> int:
        seen.append(int(ids.sum()))
        return len(seen)

    run = StepGraph(step, required=False)
    assert [run(torch.tensor([i, 1])) for i in range(6)] == [1, 2, 3, 4, 5, 6]
    assert seen == [1, 2, 3, 4, 5, 6]
    said = [str(w.message) for w in recwarn]
    assert len(said) == 1 and said[0].endswith("not permitted when stream is capturing")


@pytest.mark.usefixtures("broken_capture")
def test_a_failed_capture_leaves_nothing_of_itself(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """A step that broke off before its end has left gradients that were never computed."""
    left: list[str] = []
    seen: list[list[str]] = []

    def step(ids: torch.Tensor) -> None:
        seen.append(list(left))
        left.append("gradient")
        if len(seen) != 4:
            left.clear()

    class Capture(contextlib.nullcontext[None]):
        """Runs what is captured, then finds that it was not legal."""

        def __init__(self, *_: object, **__: object) -> None:
            super().__init__()

        def __exit__(self, *_: object) -> None:
            try:
                raise RuntimeError("the cause")
            except RuntimeError:
                raise RuntimeError("a previous error") from None

    monkeypatch.setattr("torch.cuda.graph", Capture)
    run = StepGraph(step, required=False, reset=left.clear)
    for _ in range(6):
        run(torch.zeros(1))
    assert seen == [[]] * 7
    (warning,) = recwarn
    assert str(warning.message).endswith("the cause")


@pytest.mark.usefixtures("broken_capture")
def test_all_warm_up_runs_on_the_stream_of_the_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Freed memory is kept per stream: three streams would keep three times as much."""
    used: list[object] = []

    def stream(chosen: object) -> contextlib.nullcontext[None]:
        used.append(chosen)
        return contextlib.nullcontext()

    def graph(*_: object, **options: object) -> None:
        used.append(options["stream"])
        raise RuntimeError("no GPU")

    monkeypatch.setattr("torch.cuda.stream", stream)
    monkeypatch.setattr("torch.cuda.graph", graph)
    run = StepGraph(lambda ids: ids, required=False)
    with pytest.warns(UserWarning, match="no GPU"):
        for _ in range(4):
            run(torch.zeros(1))
    assert len(used) == 4 and len(set(map(id, used))) == 1


@pytest.mark.usefixtures("broken_capture")
def test_several_processes_warm_up_longer_on_the_stream_of_their_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    captured: list[object] = []

    def graph(*_: object, **options: object) -> None:
        captured.append(options["stream"])
        raise RuntimeError("no GPU")

    monkeypatch.setattr("torch.cuda.graph", graph)
    stream: Any = Stream()
    run = StepGraph(lambda ids: ids, required=True, stream=stream, warmup=WARMUP_OF_SEVERAL)
    for _ in range(11):
        run(torch.zeros(1))
    assert not captured
    with pytest.raises(RuntimeError, match="no GPU"):
        run(torch.zeros(1))
    assert captured == [stream]


@pytest.mark.usefixtures("broken_capture")
def test_the_wrapper_of_several_processes_is_made_on_the_stream_of_the_capture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the gradients of a captured backward would be added up outside of the capture."""
    current: list[object] = [None]

    @contextlib.contextmanager
    def use(stream: object) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    class Wrapper(torch.nn.Module):
        """Stands in for DistributedDataParallel."""

        def __init__(self, _: object) -> None:
            super().__init__()
            self.made_on = current[-1]

    monkeypatch.setattr("torch.cuda.stream", use)
    monkeypatch.setattr("sjepa_fast.training.step.DistributedDataParallel", Wrapper)
    plain = make_step(world=World(size=2))
    assert plain.graph is None and plain.objective.made_on is None
    monkeypatch.setattr("sjepa_fast.training.step.wants_graph", lambda *_: True)
    captured = make_step(world=World(size=2))
    assert captured.graph is not None and captured.graph.warmup == 11
    assert captured.graph.stream is captured.objective.made_on is not None
    assert make_step().graph.warmup == 3, "alone"


def test_a_step_is_freed_without_the_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the next model on the same GPU finds the memory of this one taken."""
    monkeypatch.setattr("sjepa_fast.training.step.wants_graph", lambda *_: True)
    gc.collect()
    gc.disable()
    try:
        step = make_step()
        freed = weakref.ref(step)
        del step
        assert freed() is None
    finally:
        gc.enable()


@pytest.mark.usefixtures("broken_capture")
def test_a_failed_capture_is_an_error_where_the_graph_was_asked_for() -> None:
    run = StepGraph(lambda ids: ids, required=True)
    for _ in range(3):
        run(torch.zeros(1))
    with pytest.raises(RuntimeError, match="capturing"):
        run(torch.zeros(1))


def on_gpu(config: TrainConfig, world: World = ALONE) -> TrainStep:
    clips = step_clips()
    moved = {
        field.name: getattr(clips, field.name).to(GPU)
        for field in dataclasses.fields(ResidentClips)
        if isinstance(getattr(clips, field.name), torch.Tensor)
    }
    clips = dataclasses.replace(clips, **moved)
    model = build_model(config, clips, torch.arange(6, device=GPU), GPU)
    optimizer = build_optimizer(model, config)
    schedule = tabulate(config, STEPS + 20, 5, GPU)
    return TrainStep(config, clips, model, optimizer, torch.float32, world, schedule)


@needs_gpu
@pytest.mark.parametrize("compiled", ["off", "on"])
def test_replay_equals_the_plain_step(compiled: str) -> None:
    losses = {}
    for choice in ("off", "on"):
        step = on_gpu(with_graph(choice, compile=compiled))
        ids = torch.arange(6, device=GPU)
        losses[choice] = [step(ids.roll(i)).loss.clone() for i in range(STEPS)]
    torch.testing.assert_close(
        torch.stack(losses["on"]), torch.stack(losses["off"]), rtol=1e-5, atol=1e-6
    )


@needs_gpu
def test_replay_neither_waits_nor_copies_from_the_host() -> None:
    step = on_gpu(with_graph("on"))
    ids = torch.arange(6, device=GPU)
    for _ in range(5):
        step(ids)
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(10):
                step(ids)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    names = [event.name for event in profile.events()]
    assert any("GraphLaunch" in name for name in names), "the step was not a graph"
    assert not [name for name in names if "HtoD" in name or "DtoH" in name]


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_replay_of_two_processes_with_nccl_equals_the_plain_step(tmp_path: Path) -> None:
    script = tmp_path / "with_nccl.py"
    script.write_text(WITH_NCCL)
    done = torchrun(2, script)
    assert done.returncode == 0, done.stderr
