# SPDX-License-Identifier: Apache-2.0
"""Errors that name the argument, the value found and the fix, and the checks ops share."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

# Not the 8-bit kinds, in which torch itself has no sums and the kernels have no loads.
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
HALVES = (torch.bfloat16, torch.float16)


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


def check_tensors(
    device: torch.device, tensors: Mapping[str, tuple[Tensor, tuple[int, ...], str]]
) -> None:
    """Check shape, dtype and device of float tensors: name -> (tensor, shape, its letters)."""
    for name, (tensor, shape, letters) in tensors.items():
        check_shape(name, tensor, shape, letters)
        check_float(name, tensor)
        check_same_device(device, **{name: tensor})


def readable(tensor: Tensor) -> bool:
    """Whether there are numbers to read without a device sync: on the CPU, in eager mode."""
    waits = tensor.device.type != "cpu" or torch.compiler.is_compiling()
    return not waits and tensor.numel() > 0


def check_int64(argument: str, tensor: Tensor) -> None:
    """Raise TypeError unless the tensor is int64."""
    if tensor.dtype != torch.int64:
        raise bad_type(argument, tensor.dtype, "pass an int64 tensor")


def check_integers(argument: str, tensor: Tensor) -> None:
    """Raise TypeError unless the tensor is int32 or int64."""
    if tensor.dtype not in (torch.int32, torch.int64):
        raise bad_type(argument, tensor.dtype, "pass an int32 or int64 tensor")


def check_purpose(purpose: int) -> None:
    """Raise ValueError unless the number fits the counter word that keeps draws apart."""
    if not 0 <= purpose < 1 << 32:
        raise bad_value("purpose", purpose, "choose a number from 0 to 2^32 - 1")


def check_ids(argument: str, ids: Tensor, bound: int) -> None:
    """Check dtype and, where reading them costs no device sync, the range of integer ids.

    Ids on an accelerator, or inside a compiled graph, are not read here; the Triton kernels turn
    a row with an id out of range into NaN, so that a mistake cannot pass for a result.
    """
    check_integers(argument, ids)
    if not readable(ids):
        return
    low, high = (int(end) for end in torch.aminmax(ids))
    if low < 0 or high >= bound:
        raise bad_value(argument, f"ids from {low} to {high}", f"ids must lie in 0..{bound - 1}")


def check_distinct(argument: str, ids_BK: Tensor, bound: int) -> None:
    """Raise ValueError if an id stands twice in a row, where `check_ids` reads ids at all.

    Args:
        argument: Its name.
        ids_BK: Ids that `check_ids` has passed.
        bound: One above the largest id.

    Raises:
        ValueError: For the first row that repeats an id.
    """
    if not readable(ids_BK):
        return
    batch, columns = ids_BK.shape
    seen = torch.zeros(batch, bound, dtype=torch.bool).scatter_(1, ids_BK.long(), True)
    repeats = (seen.sum(dim=1) < columns).nonzero()
    if len(repeats):
        row = int(repeats[0])
        raise bad_value(argument, f"row {row} names a token twice", "name each token at most once")


def check_number(
    argument: str, value: float | Tensor, good: Callable[[float], bool], fix: str
) -> None:
    """Raise ValueError unless a scalar is 0-dim and good.

    A tensor on an accelerator, or inside a compiled graph, is not read: it is trusted.

    Args:
        argument: Its name.
        value: The number, or a 0-dim tensor of it.
        good: Whether a number will do; NaN should not.
        fix: What to pass instead.

    Raises:
        ValueError: The tensor has axes, or the number is not good.
    """
    if isinstance(value, Tensor):
        if value.ndim != 0:
            raise bad_value(argument, tuple(value.shape), "pass a float or a 0-dim tensor")
        if not readable(value):
            return
        # Torch warns of one that requires a gradient.
        value = value.detach()
    number = float(value)
    if not good(number):
        raise bad_value(argument, number, fix)


def check_positive(argument: str, value: float | Tensor) -> None:
    """Raise ValueError unless the scalar is finite and above zero."""
    check_number(argument, value, lambda x: 0 < x < math.inf, "pass a finite number above zero")


def check_fraction(argument: str, value: float | Tensor) -> None:
    """Raise ValueError unless the scalar lies in [0, 1]."""
    check_number(argument, value, lambda x: 0 <= x <= 1, "pass a number in [0, 1]")


def check_weights(argument: str, weights: Sequence[float], count: int) -> None:
    """Raise ValueError unless there are so many weights, all finite and none negative."""
    given = weights if isinstance(weights, Sequence) else ()
    if len(given) != count or not all(0 <= w < math.inf for w in given):
        raise bad_value(argument, weights, f"pass {count} finite numbers, none below zero")


def check_not_expanded(argument: str, tensor: Tensor) -> None:
    """Raise ValueError where several elements of what is updated share one place in memory."""
    if any(s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True)):
        raise bad_value(argument, "an expanded tensor", "pass one that owns its elements")


def check_once(argument: str, tensor: Tensor, seen: set[int]) -> None:
    """Raise ValueError if an earlier tensor that is written begins at the same place."""
    if torch.compiler.is_compiling() or tensor.numel() == 0:
        return
    if tensor.data_ptr() in seen:
        raise bad_value(argument, "the same memory as an earlier tensor", "pass it once")
    seen.add(tensor.data_ptr())


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one stretch of memory, in any order of the axes."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True
