# SPDX-License-Identifier: Apache-2.0
"""`--profile`: the time of each pass of a step, as one page and as a trace.

The passes of a step follow each other, so a time stamp where each begins is enough. PyTorch's hooks
on networks and optimisers set the stamps; without `--profile` there are no hooks.
"""

from __future__ import annotations

import contextlib
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from sjepa_fast.objectives.objective import Objective
from sjepa_fast.runtime.files import write_json, write_text

T = TypeVar("T")

WARMUP, CLOCKED, TRACED = 10, 5, 2
# The pass that begins with the forward of a network of the objective.
NETWORKS = {
    "view_encoder": "student",
    "predictor": "predictor",
    "projector": "projector",
    "target_encoder": "teacher",
}
# Names of launches and waits in PyTorch's profiler.
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
GRAPHS = ("cudaGraphLaunch",)
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
READS = ("aten::_local_scalar_dense",)


class PassClock:
    """Times the passes of eager steps: data, student, predictor, teacher, loss, backward and so on.

    A pass lasts until the next one begins. "backward" includes the norm of the gradients, and "EMA,
    center" everything after the optimiser. On a GPU the times are the device's own.
    """

    def __init__(
        self, model: Objective, optimizer: torch.optim.Optimizer, device: torch.device
    ) -> None:
        self.model, self.optimizer, self.device = model, optimizer, device
        self.marks: list[tuple[str, Any]] = []
        self.range: torch.profiler.record_function | None = None
        self.steps: list[dict[str, float]] = []

    def _mark(self, name: str) -> None:
        if self.device.type == "cuda":
            stamp: Any = torch.cuda.Event(enable_timing=True)
            stamp.record()
        else:
            stamp = time.perf_counter()
        self.marks.append((name, stamp))
        if self.range is not None:
            self.range.__exit__(None, None, None)
        self.range = torch.profiler.record_function(f"pass: {name}")
        self.range.__enter__()

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        """Set the hooks for as long as the block lasts."""

        def begins(name: str) -> Callable[..., None]:
            return lambda *_: self._mark(name)

        handles: list[Any] = []
        for attribute, name in NETWORKS.items():
            network = self.model.network(attribute)
            # No objective has all.
            if network is not None:
                handles.append(network.register_forward_pre_hook(begins(name)))
                handles.append(network.register_forward_hook(begins("loss")))
        handles.append(self.model.register_forward_hook(begins("backward")))
        handles.append(self.optimizer.register_step_pre_hook(begins("optimiser")))
        handles.append(self.optimizer.register_step_post_hook(begins("EMA, center")))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def step(self, run: Callable[[], T]) -> T:
        """Run one step with the hooks and keep the times of its passes."""
        self.marks.clear()
        self._mark("data")
        result = run()
        self._mark("end")
        assert self.range is not None
        self.range.__exit__(None, None, None)
        self.range = None
        _wait_for(self.device)
        taken: dict[str, float] = {}
        for (name, start), (_, stop) in zip(self.marks, self.marks[1:], strict=False):
            cuda = self.device.type == "cuda"
            seconds = start.elapsed_time(stop) / 1000 if cuda else stop - start
            taken[name] = taken.get(name, 0.0) + seconds
        self.steps.append(taken)
        return result

    def seconds(self) -> dict[str, float]:
        """Return the median seconds of each pass."""
        return {
            name: statistics.median(step.get(name, 0.0) for step in self.steps)
            for name in self.steps[0]
        }


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the FLOP/s of large square matrix products: an upper bound for a step."""
    size = 8192 if device.type == "cuda" else 768
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(8):
        _wait_for(device)
        start = time.perf_counter()
        for _ in range(4):
            a @ b
        _wait_for(device)
        seconds.append((time.perf_counter() - start) / 4)
    return float(2 * size**3 / statistics.median(seconds[2:]))


def op_counts(profile: torch.profiler.profile, steps: int) -> dict[str, float]:
    """Return launches, host waits and reads per step, from a finished profile."""
    events = {event.key: event for event in profile.key_averages()}

    def count(names: tuple[str, ...]) -> float:
        return float(sum(events[name].count for name in names if name in events)) / steps

    operations = sum(event.count for key, event in events.items() if key.startswith("aten::"))
    return {
        "operators": operations / steps,
        "kernel launches": count(LAUNCHES),
        "graph launches": count(GRAPHS),
        # The profiler itself waits for the device once when it stops.
        "host waits": max(0.0, count(WAITS) - 1 / steps),
        "values read by the host": count(READS),
    }


def peak_rss_mib() -> float:
    """Return the most memory that this process has held, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class ProfiledStep(Generic[T]):
    """A training step that times and traces a few steps once, after warm-up.

    These steps train like any other. Passes cannot be separated in a CUDA graph, so they are timed
    by the `eager` step; the time of a step as the run has it is measured before. `flops` is the
    FLOP of a step; trace and summary go to `folder`.
    """

    def __init__(
        self,
        step: Callable[[Tensor], T],
        eager: Callable[[Tensor], T],
        clock: PassClock,
        flops: float,
        dtype: torch.dtype,
        folder: Path,
    ) -> None:
        self.inner, self.eager, self.clock, self.flops = step, eager, clock, flops
        self.dtype, self.folder = dtype, folder
        self.done = 0
        self.stamps: list[float] = []
        self.profile: torch.profiler.profile | None = None

    def __call__(self, ids: Tensor) -> T:
        """Train one step."""
        self.done += 1
        if self.done <= WARMUP or self.done > WARMUP + CLOCKED + TRACED:
            result = self.inner(ids)
            if self.done in (WARMUP - CLOCKED, WARMUP):
                _wait_for(self.clock.device)
                self.stamps.append(time.perf_counter())
            return result
        with self.clock.hooks():
            if self.done <= WARMUP + CLOCKED:
                result = self.clock.step(lambda: self.eager(ids))
            else:
                result = self._traced(ids)
        if self.done == WARMUP + CLOCKED + TRACED:
            self._write()
        return result

    def _traced(self, ids: Tensor) -> T:
        if self.profile is None:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self.clock.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.clock.device)
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self.profile = torch.profiler.profile(activities=activities, acc_events=True)
            self.profile.start()
        # The trace slows the step, so its times do not count.
        clocked = len(self.clock.steps)
        result = self.clock.step(lambda: self.eager(ids))
        del self.clock.steps[clocked:]
        return result

    def _write(self) -> None:
        assert self.profile is not None
        self.profile.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.profile.export_chrome_trace(str(self.folder / "trace.json.gz"))
        facts = self.facts()
        write_json(self.folder / "profile.json", facts)
        device = "self_cuda" if self.clock.device.type == "cuda" else "self_cpu"
        top = self.profile.key_averages().table(
            sort_by=f"{device}_time_total", row_limit=12, max_name_column_width=48
        )
        write_text(self.folder / "profile.md", summary(facts, str(top)))

    def facts(self) -> dict[str, Any]:
        """Return all figures of the summary as plain values."""
        assert self.profile is not None
        device, seconds = self.clock.device, self.clock.seconds()
        on_gpu = device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(device) if on_gpu else 0
        return {
            "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
            "torch": torch.__version__,
            "dtype": str(self.dtype).removeprefix("torch."),
            "seconds": seconds,
            "run_seconds": (self.stamps[1] - self.stamps[0]) / CLOCKED,
            "step_seconds": sum(seconds.values()),
            "flops": self.flops,
            "matmul_flops": matmul_flops(device, self.dtype),
            "peak_mib": peak / 2**20 if on_gpu else peak_rss_mib(),
            "counts": op_counts(self.profile, TRACED),
        }


def summary(facts: dict[str, Any], top: str) -> str:
    """Write a profile as one page of Markdown.

    `facts` come from `ProfiledStep.facts`; `top` is the profiler's table of the costliest
    operators.
    """
    total, run, flops = facts["step_seconds"], facts["run_seconds"], facts["flops"]
    lines = [
        f"# Profile of a training step: {facts['device']}, {facts['dtype']}, "
        f"torch {facts['torch']}",
        "",
        f"{1000 * run:.2f} ms per step as the run has it, mean of {CLOCKED}. Clocked pass by pass, "
        f"and without a CUDA graph: {1000 * total:.2f} ms, medians of {CLOCKED}.",
        "",
        "| pass | ms | share |",
        "| --- | ---: | ---: |",
        *(
            f"| {name} | {1000 * seconds:.2f} | {100 * seconds / total:.1f} % |"
            for name, seconds in facts["seconds"].items()
        ),
        "",
        f"* {flops / 1e12:.3f} TFLOP in matrix products, {flops / run / 1e12:.2f} TFLOP/s: "
        f"{100 * flops / run / facts['matmul_flops']:.0f} % of the "
        f"{facts['matmul_flops'] / 1e12:.2f} that a large product reached here.",
    ]
    what = "process, so far" if facts["device"] == "cpu" else "step"
    lines.append(f"* Peak memory of the {what}: {facts['peak_mib']:.0f} MiB.")
    counts = ", ".join(f"{value:.0f} {name}" for name, value in facts["counts"].items())
    lines += [f"* A step: {counts}.", "", "```", top.rstrip(), "```", ""]
    return "\n".join(lines)
