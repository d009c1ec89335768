# SPDX-License-Identifier: Apache-2.0
"""Calls the C++ of the cross-entropies of rows and of Sinkhorn steps (csrc/)."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from sjepa_kernels._checks import bad_value
from sjepa_kernels.losses.shared import Outputs
from sjepa_kernels.native import LIBRARY


def has_cpu_code(rows: Tensor) -> bool:
    """Whether the C++ code takes these rows: float32, or half precision that the caller casts."""
    return rows.dtype in (torch.float32, torch.bfloat16, torch.float16)


def centered_ce_cpu(*args: Any) -> Outputs:
    """Run the C++ code on the arguments of the registered op but its last, a float32 student."""
    assert LIBRARY is not None
    *tensors, temp_student, temp_target, index, weights, needs_grad = args
    s, t, c = (_laid_out(x, torch.float32) for x in tensors)
    name = "teacher_index" if c is not None else "probabilities_index"
    rows, width = s.shape
    inputs = s, t, c, _laid_out(index, torch.int64), _laid_out(weights, torch.float32)
    sizes = [ctypes.c_int64(n) for n in (rows, t.shape[0], width)]
    loss, center_sum = s.new_empty(()), s.new_empty(width if c is not None else 0)
    grad = torch.empty_like(s) if needs_grad else s.new_empty(0)
    outputs = temp_student, temp_target, loss, center_sum, grad if needs_grad else None
    status = LIBRARY.sjepa_centered_ce_f32(
        *map(_pointer, inputs),
        *sizes,
        *map(_pointer, outputs),
        ctypes.c_int(torch.get_num_threads()),
    )
    if status == 1:
        raise bad_value(name, "an id outside its rows", f"ids must lie in 0..{t.shape[0] - 1}")
    if status != 0:
        raise MemoryError("cross-entropy: no memory for its scratch rows")
    return loss, center_sum, grad, s.new_empty(0)


def sinkhorn_step_cpu(teacher_BK: Tensor, center_K: Tensor, temp: Tensor, first: bool) -> Tensor:
    """Return the logarithms of the columns' sums; all float32, `temp` 0-dim."""
    assert LIBRARY is not None
    log_sums = teacher_BK.new_empty(teacher_BK.shape[1])
    status = LIBRARY.sjepa_sinkhorn_step_f32(
        *map(_pointer, (teacher_BK.contiguous(), center_K.contiguous(), temp)),
        *(ctypes.c_int64(n) for n in teacher_BK.shape),
        ctypes.c_int(first),
        _pointer(log_sums),
        ctypes.c_int(torch.get_num_threads()),
    )
    if status != 0:
        raise MemoryError("sinkhorn_center: no memory for its partial sums")
    return log_sums


def _laid_out(tensor: Any, dtype: torch.dtype) -> Any:
    return None if tensor is None else tensor.to(dtype).contiguous()


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
