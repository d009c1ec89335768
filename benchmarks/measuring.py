"""How a row of an op is timed, and what it notes beside the statistics:

us                  median of one call
GB/s                by the bytes the op cannot avoid
% of copy           the same over the bandwidth of a plain copy, measured in this run
peak MiB            allocated above what was there before (GPU only)
error               largest deviation from float64, over the largest number of each output
regime              "call" from Python, or "graph": replays of a CUDA graph (GPU only)
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.report.book import captured
from sjepa_kernels.native import LIBRARY

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
OURS_BUILT = pytest.mark.skipif(
    not ON_GPU and LIBRARY is None, reason="the C++ library is not built"
)
REGIMES = ["call", "graph"] if ON_GPU else ["call"]
# Steps in one graph: enough for the launch of the graph to vanish beside them.
CALLS = {"call": 1, "graph": 20}
LOSSES = ["eager", "compiled", pytest.param("ours", marks=OURS_BUILT), "ours compiled"]

Step = Callable[[], Any]


@cache
def copy_bandwidth() -> float:
    """GB/s, read and written, of copying what no cache holds."""
    source = torch.ones((1 << 28) if ON_GPU else (1 << 24), device=DEVICE)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(15):
        start = time.perf_counter()
        target.copy_(source)
        if ON_GPU:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * source.numel() * 4e-9 / statistics.median(seconds)


def largest_error(values: Sequence[Tensor], truths: Sequence[Tensor]) -> float:
    """Largest deviation over the largest number, of the worst output."""
    pairs = zip(values, truths, strict=True)
    with torch.no_grad():
        return max(float((x - t).abs().max() / t.abs().max()) for x, t in pairs)


def measure(
    benchmark: Any, step: Step, gigabytes: float, error: float, regime: str = "call"
) -> None:
    """Time a step, synchronised, and note what the module's docstring lists."""
    calls = CALLS[regime]
    run = captured(step, calls) if regime == "graph" else step

    def synchronised() -> None:
        run()
        if ON_GPU:
            torch.cuda.synchronize()

    info = benchmark.extra_info
    if ON_GPU:
        step()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        info["peak MiB"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    benchmark.pedantic(synchronised, rounds=15, warmup_rounds=5, iterations=1)
    info["device"] = (
        torch.cuda.get_device_name() if ON_GPU else f"{torch.get_num_threads()} threads"
    )
    info.update({"torch": torch.__version__, "regime": regime, "error": error})
    # stats is None where pytest-benchmark runs each function once (--benchmark-disable).
    if benchmark.stats is not None:
        seconds = benchmark.stats.stats.median / calls
        info["us"] = 1e6 * seconds
        info["GB/s"] = gigabytes / seconds
        info["% of copy"] = 100 * info["GB/s"] / copy_bandwidth()
