"""Choice of device and compute precision, with the reason."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

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


def pick_dtype(runtime: RuntimeConfig, device: torch.device) -> tuple[torch.dtype, str]:
    """Return the compute precision and why: bfloat16 where the device has it natively."""
    if runtime.dtype != "auto":
        return getattr(torch, runtime.dtype), "asked for"
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        where = torch.cuda.get_device_name(device)
    else:
        native = bool(torch.cpu._is_avx512_bf16_supported())
        where = "this CPU"
    if native:
        return torch.bfloat16, f"{where} has native bfloat16"
    return torch.float32, f"{where} has no native bfloat16"


def wants_compile(choice: Switch, device: torch.device) -> bool:
    """Whether to compile: `auto` does on a GPU, where passes over memory cost the most.

    On a CPU it gains little and takes half a minute to start.
    """
    return choice == "on" or (choice == "auto" and device.type == "cuda")


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Return the context in which networks run: autocast for bfloat16, nothing for float32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)
