"""The report's file, and the input of every section: device, sizes, time limit.

`report.json` is replaced as a whole after every row, so that the rows measured before a crash or a
time-out are kept.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sjepa_fast.runtime.files import write_json

Row = dict[str, Any]
# How a section ended; one whose process died stays at "running".
DONE, RUNNING, FAILED, LATE = "done", "running", "failed", "out of time"


# How the reason of a row begins that there was no time for: it says nothing of the device.
LEFT_OUT = "left out"


class DeviceLostError(RuntimeError):
    """The device answers no more in this process; another process may still use it."""


def read_report(path: Path) -> dict[str, Any]:
    """Read a report, or begin one."""
    if path.exists():
        report: dict[str, Any] = json.loads(path.read_text())
        return report
    return {"sections": {}}


@dataclass
class Book:
    """One section's view of the report."""

    path: Path
    section: str
    device: str
    """cuda or cpu."""
    small: bool
    """Whether sizes are scaled down, as on a CPU."""
    deadline: float
    """`time.time()` at which the section should have ended."""

    def left(self) -> float:
        """Return the seconds that the section still has."""
        return self.deadline - time.time()

    def write(self, **values: Any) -> None:
        """Set values of the section."""
        report = read_report(self.path)
        entry = report["sections"].setdefault(self.section, {"rows": []})
        entry.update(values)
        write_json(self.path, report)

    def row(self, **values: Any) -> None:
        """Add a row to the section."""
        report = read_report(self.path)
        report["sections"][self.section]["rows"].append(values)
        write_json(self.path, report)

    def attempt(self, measure: Callable[[], Row], *, needs: float = 0.0, **facts: Any) -> None:
        """Add the row that a measurement returns, or the reason why there is none.

        It is left out if there are not so many seconds as it `needs`; the facts say what it is.
        A failure that leaves the device unusable raises DeviceLostError.
        """
        import torch

        if self.left() < needs:
            self.row(**facts, error=f"{LEFT_OUT}: no time")
            return
        forget_peaks(self.device)
        try:
            figures = measure()
            figures = {**peaks(self.device), **figures}
        except torch.OutOfMemoryError:
            figures = {"error": "out of memory"}
        except Exception as error:
            lines = str(error).strip().splitlines()[:2]
            figures = {"error": f"{type(error).__name__}: {' '.join(lines)}"[:300]}
        self.row(**facts, **figures)
        if "torch._dynamo" in sys.modules:
            # Code that was compiled for earlier rows counts against the limit of each function,
            # beyond which it silently runs eagerly.
            torch.compiler.reset()
        if self.device == "cuda":
            # What a failed or finished row holds in cycles would be missing in the next one.
            gc.collect()
            try:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
            except Exception as error:
                raise DeviceLostError(str(error)) from error


def forget_peaks(device: str) -> None:
    """Begin to note the most memory of a row: before it is built, so that nothing is left out."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peaks(device: str) -> Row:
    """Return the most MiB on a GPU since `forget_peaks`: allocated, and taken from the driver."""
    import torch

    if device != "cuda":
        return {}
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return {"peak_mib": allocated / 2**20, "reserved_mib": reserved / 2**20}


def captured(run: Callable[[], Any], calls: int) -> Callable[[], None]:
    """Return the replay of a CUDA graph of so many calls."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    return graph.replay


def timed(
    run: Callable[[], Any], device: str, *,
    warmup: int = 3, rounds: int = 10, calls: int = 1, most: float = 20.0,
) -> Row:  # fmt: skip
    """Time a function; a GPU is waited for around each round.

    Rounds of several calls hide the wait. There are fewer, but at least 3, if they would take more
    than `most` seconds. Returns median, least and largest milliseconds per call, and the rounds.
    """
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(warmup):
        run()
    wait()
    taken: list[float] = []
    while len(taken) < rounds and (len(taken) < 3 or sum(taken) * calls < most):
        start = time.perf_counter()
        for _ in range(calls):
            run()
        wait()
        taken.append((time.perf_counter() - start) / calls)
    least, middle, largest = min(taken), statistics.median(taken), max(taken)
    figures: Row = {"ms": 1000 * middle, "ms_min": 1000 * least, "ms_max": 1000 * largest}
    figures["rounds"] = len(taken)
    return figures
