"""Errors that name the argument, the value found and the fix, and the checks ops share."""

import math

import torch
from torch import Tensor

# Not the 8-bit kinds, in which torch itself has no sums and the kernels have no loads.
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def bad_value(argument: str, value: object, fix: str) -> ValueError:
    """Return a ValueError that reads `argument: value; fix`."""
    return ValueError(f"{argument}: {value}; {fix}")


def bad_type(argument: str, value: object, fix: str) -> TypeError:
    """Return a TypeError that reads `argument: value; fix`."""
    return TypeError(f"{argument}: {value}; {fix}")


def check_float(argument: str, tensor: Tensor) -> None:
    """Raise TypeError unless the tensor is float64, float32, bfloat16 or float16."""
    if tensor.dtype not in FLOATS:
        raise bad_type(argument, tensor.dtype, "pass a floating-point tensor of 16, 32 or 64 bits")


def check_shape(argument: str, tensor: Tensor, shape: tuple[int, ...], letters: str) -> None:
    """Raise ValueError unless the tensor has this shape; `letters` says it in dimension letters."""
    if tuple(tensor.shape) != shape:
        raise bad_value(argument, tuple(tensor.shape), f"expected {letters} = {shape}")


def check_same_device(device: torch.device, **tensors: Tensor) -> None:
    """Raise ValueError for the first tensor that lives on another device."""
    for argument, tensor in tensors.items():
        if tensor.device != device:
            raise bad_value(argument, tensor.device, f"move it to {device} like the first argument")


def check_ids(argument: str, ids: Tensor, bound: int) -> None:
    """Check dtype and, where reading them costs no device sync, the range of integer ids.

    Ids on an accelerator, or inside a compiled graph, are not read here; the Triton kernels turn
    a row with an id out of range into NaN, so that a mistake cannot pass for a result.
    """
    if ids.dtype not in (torch.int32, torch.int64):
        raise bad_type(argument, ids.dtype, "pass int32 or int64 ids")
    if ids.device.type != "cpu" or torch.compiler.is_compiling() or ids.numel() == 0:
        return
    low, high = (int(end) for end in torch.aminmax(ids))
    if low < 0 or high >= bound:
        raise bad_value(argument, f"ids from {low} to {high}", f"ids must lie in 0..{bound - 1}")


def check_positive(argument: str, value: float | Tensor) -> None:
    """Raise ValueError unless the scalar is finite and above zero (device tensors are trusted)."""
    if isinstance(value, Tensor):
        if value.ndim != 0:
            raise bad_value(argument, tuple(value.shape), "pass a float or a 0-dim tensor")
        if value.device.type != "cpu" or torch.compiler.is_compiling():
            return
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise bad_value(argument, number, "pass a finite number above zero")
