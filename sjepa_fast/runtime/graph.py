# SPDX-License-Identifier: Apache-2.0
"""One CUDA graph of a whole training step: hundreds of launches become one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

# Eager steps before the capture: the first compiles, the second warms the allocator.
WARMUP = 3
# With DistributedDataParallel, which times its first ten backwards with events of its own.
WARMUP_OF_SEVERAL = 11


class StepGraph(Generic[Result]):
    """Runs the first steps eagerly, then captures one as a CUDA graph and replays it.

    The step maps clip ids (B,), int64 on the GPU, to tensors, which the next call overwrites.
    Everything that changes between steps (counter, schedules, parameters) must lie at fixed
    addresses; this class copies the clip ids to one. A failed capture is an error if `required`;
    else the steps stay eager, with a warning, after `reset` has dropped what the step had made when
    it broke off (gradients that no kernel has computed). Warm-up, `warmup` steps, and capture use
    `stream`, or one of their own.
    """

    def __init__(
        self,
        step: Callable[[Tensor], Result],
        *,
        required: bool,
        reset: Callable[[], object] = lambda: None,
        stream: torch.cuda.Stream | None = None,
        warmup: int = WARMUP,
    ) -> None:
        self.step, self.required, self.reset = step, required, reset
        self.stream, self.warmup = stream, warmup
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.usable = True

    def __call__(self, ids_B: Tensor) -> Result:
        """Do one step on the clips `ids_B`; their number must not change between calls."""
        self.calls += 1
        if not self.usable:
            return self.step(ids_B)
        if self.calls <= self.warmup:
            return self._warm_up(ids_B)
        if self.graph is None:
            self._capture(ids_B)
            if not self.usable:
                return self.step(ids_B)
        assert self.graph is not None
        self.ids_B.copy_(ids_B, non_blocking=True)
        self.graph.replay()
        return self.result

    def _warm_up(self, ids_B: Tensor) -> Result:
        # On the stream of the capture: what is built lazily is built for a stream, and memory that
        # is freed can only be used again by the stream that it came from.
        if self.stream is None:
            self.stream = torch.cuda.Stream()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = self.step(ids_B)
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def _capture(self, ids_B: Tensor) -> None:
        self.ids_B = ids_B.clone()
        graph = torch.cuda.CUDAGraph()
        before = torch.cuda.current_stream()
        try:
            # Restrict this thread only: the loader's thread pins memory meanwhile.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.result = self.step(self.ids_B)
        except RuntimeError as error:
            # torch leaves the stream of a capture that failed as the current one.
            torch.cuda.set_stream(before)
            self.reset()
            _leave_capture()
            if self.required:
                raise
            self.usable = False
            reason = str(_first_cause(error)).partition("\n")[0]
            warnings.warn(
                f"the step cannot be a CUDA graph, going on without: {reason}", stacklevel=2
            )
            return
        self.graph = graph


def _leave_capture() -> None:
    """Let CUDA's random numbers be drawn again after a capture that the driver broke off.

    Up to torch 2.11 the generators still believe to be captured.
    """
    for generator in torch.cuda.default_generators:
        generator.graphsafe_set_state(generator.clone_state())


def _first_cause(error: BaseException) -> BaseException:
    """Return the error that came first; those that follow only say that the capture is broken."""
    while error.__context__ is not None:
        error = error.__context__
    return error
