"""One CUDA graph of a whole training step: hundreds of launches become one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

# Eager steps before the capture: the first compiles, the second warms the allocator.
_WARMUP = 3


class StepGraph(Generic[Result]):
    """Runs the first steps eagerly, then captures one as a CUDA graph and replays it.

    The step maps clip ids (B,), int64 on the GPU, to tensors, which the next call overwrites.
    Everything that changes between steps (counter, schedules, parameters) must lie at fixed
    addresses; this class copies the clip ids to one. A failed capture is an error if `required`;
    else the steps stay eager, with a warning.
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
            return self._on_side_stream(ids_B)
        if self.graph is None:
            self._capture(ids_B)
            if not self.usable:
                return self.step(ids_B)
        assert self.graph is not None
        self.ids_B.copy_(ids_B, non_blocking=True)
        self.graph.replay()
        return self.result

    def _on_side_stream(self, ids_B: Tensor) -> Result:
        # A capture runs on a side stream, so what is built lazily must be built on one.
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
            # Restrict this thread only: the loader's thread pins memory meanwhile.
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
