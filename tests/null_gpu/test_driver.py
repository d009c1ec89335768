"""The null driver beside what is known otherwise: memory, launches, registers, replayed work."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch

from tests.null_gpu import gpu

triton = pytest.importorskip("triton")
tl = triton.language

GIB = 2**30


def test_memory_is_counted_and_ends_at_the_size_of_the_card() -> None:
    torch.cuda.empty_cache()
    gpu.reset()
    before = gpu.used()
    block = torch.empty(3 * GIB, dtype=torch.uint8, device="cuda")
    assert gpu.used() - before == 3 * GIB
    assert gpu.mallocs() == 1
    del block
    torch.cuda.empty_cache()
    assert (gpu.used(), gpu.peak() - before) == (before, 3 * GIB)
    total = torch.cuda.get_device_properties(0).total_memory
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(total + 1, dtype=torch.uint8, device="cuda")
    free, shown = torch.cuda.mem_get_info()
    assert shown == total and total - free == gpu.used()


def test_records_tell_sizes_and_directions() -> None:
    a, b = (torch.zeros(3, 4, device="cuda"), torch.zeros(4, 5, device="cuda"))
    gpu.reset()
    a @ b
    torch.zeros(16).to("cuda")
    torch.zeros(16, pin_memory=True).to("cuda", non_blocking=True)
    a.cpu()
    torch.cuda.synchronize()
    found = [(r.kind, r.name, r.sizes) for r in gpu.records() if r.kind != "malloc"]
    (gemm, *copies) = [r for r in found if r[0] != "sync"]
    assert gemm[0] == "gemm" and gemm[1].endswith("fp32") and sorted(gemm[2]) == [1, 3, 4, 5]
    assert copies == [
        ("copy", "HtoD pageable", (64,)),
        ("copy", "HtoD pinned", (64,)),
        ("copy", "DtoH pageable", (48,)),
    ]
    assert found[-1] == ("sync", "cudaDeviceSynchronize", ())


def test_data_survive_the_way_to_the_card_and_back() -> None:
    x = torch.arange(1000.0)
    assert torch.equal(x.cuda().cpu(), x)
    with gpu.zeros_read():
        assert torch.equal(x.cuda().cpu(), torch.zeros(1000))
    assert torch.equal(x.cuda().cpu(), x)


@pytest.mark.parametrize(
    "shape",
    [(0, 1, 1, 32, 1, 1), (1, 65536, 1, 32, 1, 1), (1, 1, 1, 33, 32, 1), (1, 1, 1, 1, 1, 65)],
)
def test_a_launch_out_of_range_is_refused(shape: tuple[int, ...]) -> None:
    class Dim3(ctypes.Structure):
        _fields_ = (("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint))

    launch = ctypes.CDLL(None).cudaLaunchKernel
    launch.argtypes = [
        ctypes.c_void_p,
        Dim3,
        Dim3,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_void_p,
    ]
    assert launch(None, Dim3(*shape[:3]), Dim3(*shape[3:]), None, 0, None) == 9
    ctypes.CDLL(None).cudaGetLastError()
    assert gpu.problems() == ["grid or block out of range: unregistered kernel"]
    assert gpu.records() == []


@triton.jit
def _add_kernel(x, y, count, BLOCK: tl.constexpr):  # noqa: ANN001, ANN202
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < count) + 1, mask=at < count)


def test_a_kernel_of_triton_has_the_registers_that_its_machine_code_says(tmp_path: Path) -> None:
    x = torch.zeros(1000, device="cuda")
    seen: list[gpu.Launch] = []
    with gpu.launch_hook(seen.append):
        kernel = _add_kernel[(4,)](x, x, 1000, BLOCK=256)
    (launch,) = seen
    assert (launch.name, launch.grid, launch.block[0]) == ("_add_kernel", (4, 1, 1), 128)
    assert ctypes.c_uint64.from_address(launch.values[0] or 0).value == x.data_ptr()
    (record,) = [r for r in gpu.records() if r.kind == "triton"]
    assert record.sizes[:4] == (4, 1, 1, 128)
    file = tmp_path / "kernel.cubin"
    file.write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    said = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True)
    registers, stack = (
        int(said.stdout.split(f"{word}:")[1].split()[0]) for word in ("REG", "STACK")
    )
    assert (kernel.n_regs, kernel.n_spills) == (registers, stack // 4)


def test_the_default_attention_is_that_of_cudnn_in_half_precision() -> None:
    def names(dtype: torch.dtype) -> list[str]:
        q = torch.zeros(2, 8, 75, 32, device="cuda", dtype=dtype, requires_grad=True)
        gpu.reset()
        torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()
        return [r.name for r in gpu.records() if r.kind == "library"]

    forward, backward = names(torch.bfloat16)
    assert "attention" in forward or "2 matmul" in forward
    assert "5 matmul" in backward
    assert names(torch.float32) == []


def test_singular_values_are_asked_of_cusolver() -> None:
    values = torch.linalg.svdvals(torch.zeros(64, 16, device="cuda"))
    assert values.cpu().tolist() == [0.0] * 16
    assert [r.name for r in gpu.records() if r.kind == "library"] == ["cuSOLVER Sgesvdj"]


def test_what_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(RuntimeError):
        torch.linalg.cholesky(torch.eye(3, device="cuda"))
    assert any(text.startswith("the null GPU has no cusolverDn") for text in gpu.problems())


def test_a_host_function_runs_at_each_launch_of_its_graph() -> None:
    ran: list[int | None] = []
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(ran.append)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch.zeros(8, device="cuda")
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        assert ctypes.CDLL(None).cudaLaunchHostFunc(stream, function, ctypes.c_void_p(7)) == 0
    assert ran == []
    graph.replay()
    graph.replay()
    assert ran == [7, 7]


def test_time_counts_operations() -> None:
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    x = torch.zeros(8, device="cuda")
    first.record()
    for _ in range(5):
        x += 1
    last.record()
    assert first.elapsed_time(last) == pytest.approx(5, abs=0.01)
