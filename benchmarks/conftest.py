"""What every benchmark row records beside its time, and how a row waits for its device."""

from __future__ import annotations

import gc
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
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


@cache
def values_are_real() -> bool:
    """Whether the device computes; it may not only where BENCHMARK_VALUES_UNREAL says so.

    A driver that stands in for a GPU runs no kernel: rows run on it to see whether they launch and
    can be captured. The variable has no effect where one and one is two.
    """
    if "BENCHMARK_VALUES_UNREAL" not in os.environ or not torch.cuda.is_available():
        return True
    return (torch.ones(64, device="cuda") + 1).tolist() == [2.0] * 64


@contextmanager
def value_checks() -> Iterator[None]:
    """Around the assertions on a row's values: ignored where values are not real."""
    try:
        yield
    except AssertionError:
        if values_are_real():
            raise


def cpu_name() -> str:
    """The processor as the operating system names it."""
    table = Path("/proc/cpuinfo")
    if table.exists():
        for line in table.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def bfloat16_by() -> str:
    """What multiplies bfloat16 on this CPU: AMX (matrices), AVX-512 (vectors) or nothing.

    A limit set for the library that multiplies (oneDNN) is named instead.
    """
    if limit := os.environ.get("ONEDNN_MAX_CPU_ISA"):
        return limit
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    return "AVX-512" if torch.cpu._is_avx512_bf16_supported() else "nothing"


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where time is short, begin with ours, then what is cheap to build, then what is compiled."""
    if "BENCHMARK_DEADLINE" in os.environ:
        items.sort(key=urgency)


def urgency(item: Any) -> int:
    """Return 0 for a row of ours, 1 for one of eager PyTorch, 2 and 3 for the same compiled."""
    variant = getattr(item, "callspec", None) and item.callspec.params.get("variant")
    ours, compiled = str(variant).startswith("ours"), str(variant).endswith("compiled")
    return 2 * compiled + (ours if compiled else not ours)


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
            **({} if on_gpu else {"bfloat16_by": bfloat16_by()}),
            **facts,
        )
        reset_peak_memory(device)
        benchmark.pedantic(run_and_wait, rounds=rounds, warmup_rounds=warmup, iterations=1)
        benchmark.extra_info["peak_memory_mib"] = round(peak_memory_mib(device), 1)

    return measure
