"""What every benchmark row records beside its time, and how a row waits for its device."""

from __future__ import annotations

import gc
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

Timed = Callable[..., None]
Run = Callable[[], object]
Form = Callable[..., Any]
# Inductor imports a module of torch that torch itself deprecates.
COMPILES = pytest.mark.filterwarnings("ignore:.torch.jit.script_method.:DeprecationWarning")


def variants(plain: Form, ours: Form, **options: Any) -> dict[str, Form]:
    """Return what is timed: plain PyTorch, the same compiled, ours, and ours compiled."""
    pairs = ("", plain), ("ours", ours)
    found = {name or "eager": form for name, form in pairs}
    return found | {f"{n} compiled".strip(): torch.compile(f, **options) for n, f in pairs}


def cpu_name() -> str:
    """The processor as the operating system names it."""
    table = Path("/proc/cpuinfo")
    if table.exists():
        for line in table.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak of earlier rows, where the system can."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib(device: torch.device) -> float:
    """Peak of this row in MiB: allocated on a GPU, resident set of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def pytest_runtest_setup() -> None:
    """Skip what has not begun when the caller's time is up, so that the rest is still written."""
    deadline = os.environ.get("BENCHMARK_DEADLINE")
    if deadline is not None and time.time() > float(deadline):
        pytest.skip("no time left")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def timed(benchmark: BenchmarkFixture, device: torch.device) -> Timed:
    """Return `timed(run, dtype=..., rounds=..., warmup=..., **facts)`.

    `run()` is called `warmup` times, then timed `rounds` times with the device idle before and
    after each call. Facts (shapes, units of work) go into the row's `extra_info` with the
    versions, the device, the threads and the peak memory.
    """

    on_gpu = device.type == "cuda"

    def measure(
        run: Callable[[], object],
        *,
        dtype: torch.dtype,
        rounds: int = 5,
        warmup: int = 1,
        **facts: Any,
    ) -> None:
        def run_and_wait() -> None:
            run()
            if on_gpu:
                torch.cuda.synchronize(device)

        benchmark.extra_info.update(
            torch=torch.__version__,
            python=platform.python_version(),
            device=torch.cuda.get_device_name(device) if on_gpu else cpu_name(),
            dtype=str(dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
            **facts,
        )
        reset_peak_memory(device)
        benchmark.pedantic(run_and_wait, rounds=rounds, warmup_rounds=warmup, iterations=1)
        benchmark.extra_info["peak_memory_mib"] = round(peak_memory_mib(device), 1)

    return measure
