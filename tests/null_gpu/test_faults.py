"""The test of the tests: what CUDA forbids in a capture is refused by the null GPU, and said."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable

import pytest
import torch

from tests.null_gpu import gpu

# Numbers of cudaError_t.
UNSUPPORTED, INVALIDATED, UNJOINED, ISOLATION, IMPLICIT, CAPTURED_EVENT = (
    900,
    901,
    904,
    905,
    906,
    907,
)
HOST_TO_DEVICE = 1
MODES = ("global", "thread_local", "relaxed")


def ones(count: int = 8) -> torch.Tensor:
    return torch.ones(count, device="cuda")


def captured(fault: Callable[[], object], mode: str = "global") -> RuntimeError | None:
    """Capture some work with a fault in it; return what was raised first, if anything was."""
    ones()
    torch.cuda.synchronize()
    gpu.reset()
    before = torch.cuda.current_stream()
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode=mode):
            ones()
            fault()
            ones()
    except RuntimeError as error:
        first: BaseException = error
        while first.__context__ is not None:
            first = first.__context__
        assert isinstance(first, RuntimeError)
        return first
    finally:
        # torch leaves the stream of a capture that failed as the current one.
        torch.cuda.set_stream(before)
    return None


def cuda(name: str, *values: object) -> int:
    """Call a function of the runtime, past torch."""
    status = getattr(ctypes.CDLL(None), name)(*values)
    ctypes.CDLL(None).cudaGetLastError()
    return int(status)


def this_stream() -> ctypes.c_void_p:
    return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)


@pytest.mark.parametrize("mode", MODES)
def test_a_capture_without_a_fault_is_accepted(mode: str) -> None:
    assert captured(lambda: ones().sum(), mode) is None
    assert gpu.problems() == []
    assert [r.captured for r in gpu.records() if r.kind == "kernel"] == [True] * 4


@pytest.mark.parametrize("mode", MODES)
def test_reading_a_value_is_refused(mode: str) -> None:
    error = captured(lambda: ones().sum().item(), mode)
    assert error is not None and "not permitted when stream is capturing" in str(error)
    assert any("cudaStreamSynchronize" in text for text in gpu.problems())


def test_a_tensor_built_from_a_host_value_is_refused() -> None:
    error = captured(lambda: torch.tensor([1.0, 2.0], device="cuda"))
    assert error is not None and "captur" in str(error)


@pytest.mark.parametrize("mode", MODES)
def test_a_copy_of_pageable_memory_is_refused_and_of_pinned_memory_is_not(mode: str) -> None:
    status: list[int] = []
    card, pageable = ones(1024), torch.zeros(1024)

    def copy(host: torch.Tensor) -> None:
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (card, host)]
        size = ctypes.c_size_t(4096)
        status.append(cuda("cudaMemcpyAsync", *pointers, size, HOST_TO_DEVICE, this_stream()))

    pinned = torch.zeros(1024, pin_memory=True)
    assert captured(lambda: copy(pinned), mode) is None
    assert captured(lambda: copy(pageable), mode) is not None
    assert status == [0, UNSUPPORTED]
    assert any("pageable memory is copied" in text for text in gpu.problems())


def test_a_captured_copy_happens_when_the_graph_is_launched() -> None:
    source, target = ones(), torch.zeros(8, device="cuda")
    source.copy_(torch.arange(8.0))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        target.copy_(source)
    assert target.cpu().tolist() == [0.0] * 8
    graph.replay()
    assert target.cpu().tolist() == list(range(8))


def side_stream(*, joined: bool) -> Callable[[], None]:
    side = torch.cuda.Stream()

    def fork() -> None:
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            ones()
        if joined:
            torch.cuda.current_stream().wait_stream(side)

    return fork


def test_a_side_stream_must_be_joined() -> None:
    assert captured(side_stream(joined=True)) is None
    assert captured(side_stream(joined=False)) is not None
    assert any("not joined" in text for text in gpu.problems())


def test_a_stream_joined_by_way_of_another_one_counts() -> None:
    first, second = torch.cuda.Stream(), torch.cuda.Stream()

    def fork() -> None:
        main = torch.cuda.current_stream()
        for after, stream in ((main, first), (first, second)):
            stream.wait_stream(after)
            with torch.cuda.stream(stream):
                ones()
        main.wait_stream(second)

    assert captured(fork) is None


def test_a_capture_cannot_wait_for_work_outside_of_it() -> None:
    outside = torch.cuda.Event()
    outside.record(torch.cuda.Stream())
    error = captured(lambda: torch.cuda.current_stream().wait_event(outside))
    assert error is not None
    assert gpu.problems()[0] == "the capture waits for work outside of it"


def test_the_default_stream_cannot_join() -> None:
    error = captured(lambda: torch.cuda.default_stream().wait_stream(torch.cuda.current_stream()))
    assert error is not None
    assert gpu.problems()[0] == "the default stream waits for a capture"


def test_events_of_a_capture_cannot_be_asked_or_waited_for() -> None:
    for ask in ("cudaEventQuery", "cudaEventSynchronize"):
        status: list[int] = []

        def fault(ask: str = ask, status: list[int] = status) -> None:
            event = torch.cuda.Event()
            event.record()
            status.append(cuda(ask, ctypes.c_void_p(event.cuda_event)))

        assert captured(fault) is not None
        assert status == [CAPTURED_EVENT]


def test_after_a_fault_the_stream_accepts_nothing_more() -> None:
    status: list[int] = []

    def fault() -> None:
        status.append(cuda("cudaStreamQuery", this_stream()))
        address = ctypes.c_void_p(buffer.data_ptr())
        status.append(cuda("cudaMemsetAsync", address, 0, ctypes.c_size_t(4), this_stream()))

    buffer = ones()
    assert captured(fault) is not None
    assert status == [UNSUPPORTED, INVALIDATED]


@pytest.mark.parametrize(("mode", "status"), [("global", UNSUPPORTED), ("relaxed", 0)])
def test_memory_is_allocated_in_a_relaxed_capture_alone(mode: str, status: int) -> None:
    found, address = [], ctypes.c_void_p()

    def fault() -> None:
        found.append(cuda("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(1)))

    assert (captured(fault, mode) is None) is (status == 0)
    assert found == [status]
    cuda("cudaFree", address)


def test_the_card_cannot_be_waited_for_in_any_mode() -> None:
    for mode in MODES:
        assert captured(torch.cuda.synchronize, mode) is not None
        assert any("cudaDeviceSynchronize" in text for text in gpu.problems())


def test_work_beside_a_capture_is_noted() -> None:
    other, there = torch.cuda.Stream(), ones()

    def fault() -> None:
        with torch.cuda.stream(other):
            there.fill_(2)

    assert captured(fault) is None
    assert gpu.problems()[0].startswith("outside of the running capture: ")


@pytest.mark.parametrize("stale", [False, True])
def test_a_stale_gradient_is_refused(stale: bool) -> None:
    """A loss kept from the default stream keeps what collects the weight's gradient there.

    The default stream would have to join the capture; newer versions of torch see it first.
    """
    weight = torch.ones(8, device="cuda", requires_grad=True)

    def step() -> torch.Tensor:
        weight.grad = None
        loss = weight.square().sum()
        loss.backward()
        return loss

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of exactly this
        kept = step() if stale else step().detach()
        error = captured(step)
    assert (error is not None) is kept.requires_grad
    refused = "the default stream waits for a capture" in gpu.problems()
    assert refused or not stale or "stale reference to the default stream" in str(error)
