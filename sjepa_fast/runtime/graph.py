"""One CUDA graph of a whole training step: hundreds of launches become one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

# Steps before the capture: the first compiles, the second settles the allocator.
_WARMUP = 3


class StepGraph(Generic[Result]):
    """Runs a step as it is for the first calls, then captures it and replays the capture.

    The step must read all that changes from memory that stays where it is: its counter, its
    schedules, the parameters; this class keeps such a place for the clip ids. What the step
    returns is overwritten by the next call.

    Args:
        step: From clip ids (B,), int64 on the GPU, to tensors.
        required: Whether a failed capture is an error; else the step goes on without, and says so.
    """

    def __init__(self, step: Callable[[Tensor], Result], *, required: bool) -> None:
        self.step, self.required = step, required
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.usable = True

    def __call__(self, ids_B: Tensor) -> Result:
        """Do one step on the clips `ids_B`; their number must not change between calls."""
        self.calls += 1
        if not self.usable:
            return self.step(ids_B)
        if self.calls <= _WARMUP:
            return self._aside(ids_B)
        if self.graph is None:
            self._capture(ids_B)
            if not self.usable:
                return self.step(ids_B)
        assert self.graph is not None
        self.ids_B.copy_(ids_B, non_blocking=True)
        self.graph.replay()
        return self.result

    def _aside(self, ids_B: Tensor) -> Result:
        # On a stream of its own, as the capture will be: what is built lazily is built for it.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            result = self.step(ids_B)
        torch.cuda.current_stream().wait_stream(stream)
        return result

    def _capture(self, ids_B: Tensor) -> None:
        self.ids_B = ids_B.clone()
        graph = torch.cuda.CUDAGraph()
        try:
            # Only this thread is held to what a capture allows: the loader's pins memory meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.result = self.step(self.ids_B)
        except RuntimeError as error:
            if self.required:
                raise
            self.usable = False
            reason = str(error).partition("\n")[0]
            warnings.warn(
                f"the step cannot be a CUDA graph, going on without: {reason}", stacklevel=2
            )
            return
        self.graph = graph
