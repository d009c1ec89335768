# SPDX-License-Identifier: Apache-2.0
"""Choice of the device, and of the compute precision as far as the device alone decides it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from sjepa_fast.config.schema import RuntimeConfig, Switch
from sjepa_fast.errors import InputError


def pick_device(runtime: RuntimeConfig, local_rank: int) -> torch.device:
    """Return the device to use; a CUDA device has the index of its name, or else the local rank.

    Raises InputError if the name is unknown or CUDA is requested and absent.
    """
    name = runtime.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError("runtime.device", name, "use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError("runtime.device", name, "use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError("runtime.device", name, "no CUDA device is visible; use auto or cpu")
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        torch.cuda.set_device(device)
    return device


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that could be allocated now, or None where the system does not say."""
    if device.type == "cuda":
        # PyTorch keeps what was freed, such as an earlier run's.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        words = next(line.split() for line in lines if line.startswith("MemAvailable:"))
        return int(words[1]) * 1024
    except (OSError, StopIteration):
        return None


def check_fits(what: str, needed: int, device: torch.device, fix: str) -> None:
    """Raise InputError, with both numbers, if the device has less free memory than is needed."""
    free = free_memory(device)
    if free is not None and needed > free:
        value = f"needs {needed / 2**30:.1f} GiB, and {device} has {free / 2**30:.1f} GiB free"
        raise InputError(what, value, fix)


def native_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 by instructions of its own."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu._is_avx512_bf16_supported())


def settled_dtype(dtype: str, device: torch.device) -> tuple[torch.dtype, str] | None:
    """Return the compute precision that needs no trial, and why; None on a CPU with bfloat16.

    A GPU that has bfloat16 is faster in it. A CPU may not be: products of bfloat16 are many times
    as fast as those of float32 where it multiplies matrices (AMX), and slower on some that have
    vectors alone (AVX-512). `dtype` is `runtime.dtype`.
    """
    if dtype != "auto":
        return getattr(torch, dtype), "asked for"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
    if not native_bfloat16(device):
        return torch.float32, f"{where} has no native bfloat16"
    if device.type == "cuda":
        return torch.bfloat16, f"{where} has native bfloat16"
    return None


def wants_compile(choice: Switch, device: torch.device) -> bool:
    """Whether to compile: `auto` does on a GPU, where passes over memory cost the most.

    On a CPU it gains little and takes half a minute to start.
    """
    return choice == "on" or (choice == "auto" and device.type == "cuda")


def wants_graph(choice: Switch, device: torch.device, processes: int = 1) -> bool:
    """Whether to capture a step as a CUDA graph: on one GPU unless it is switched off.

    With several processes that train together only if it is on: that NCCL's collectives replay is
    untested (our choice). Raises InputError if it is on where a graph cannot be captured.
    """
    on_gpu = device.type == "cuda"
    if choice == "on" and not on_gpu:
        raise InputError("cuda-graph", f"on with {device.type}", "leave it on auto, or use a GPU")
    return on_gpu and (choice == "on" or (choice == "auto" and processes == 1))


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Return the context in which networks run: autocast for bfloat16, nothing for float32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)
