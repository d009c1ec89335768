"""Calls the C++ form of the centered cross-entropy (csrc/centered_ce.cpp)."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from sjepa_kernels.losses.shared import Outputs
from sjepa_kernels.native import LIBRARY


def has_cpu_code(student: Tensor) -> bool:
    """Whether the C++ code takes this student: float32, or half precision that the caller casts."""
    return student.dtype in (torch.float32, torch.bfloat16, torch.float16)


def centered_ce_cpu(*args: Any) -> Outputs:
    """Run the C++ code on the arguments of the registered op but its last, a float32 student."""
    assert LIBRARY is not None
    *tensors, temp_student, temp_target, index, weights, needs_grad = args
    s, t, c = (_laid_out(x, torch.float32) for x in tensors)
    rows, width = s.shape
    inputs = s, t, c, _laid_out(index, torch.int64), _laid_out(weights, torch.float32)
    sizes = [ctypes.c_int64(n) for n in (rows, t.shape[0], width)]
    loss, center_sum = s.new_empty(()), s.new_empty(width)
    grad = torch.empty_like(s) if needs_grad else s.new_empty(0)
    outputs = temp_student, temp_target, loss, center_sum, grad if needs_grad else None
    status = LIBRARY.sjepa_centered_ce_f32(
        *map(_pointer, inputs),
        *sizes,
        *map(_pointer, outputs),
        ctypes.c_int(torch.get_num_threads()),
    )
    if status == 1:
        raise ValueError("teacher_index: an id outside the teacher's rows; ids must lie within it")
    if status != 0:
        raise MemoryError("centered_softmax_cross_entropy: no memory for its scratch rows")
    return loss, center_sum, grad, s.new_empty(0)


def _laid_out(tensor: Any, dtype: torch.dtype) -> Any:
    return None if tensor is None else tensor.to(dtype).contiguous()


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
