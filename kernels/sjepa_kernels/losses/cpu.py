"""Calls the C++ form of the centered cross-entropy (csrc/centered_ce.cpp)."""

import ctypes

import torch
from torch import Tensor

from sjepa_kernels.losses.shared import Outputs
from sjepa_kernels.native import LIBRARY


def has_cpu_code(student: Tensor) -> bool:
    """Whether the C++ code takes this student: float32, or half precision upcast on the way."""
    return student.dtype in (torch.float32, torch.bfloat16, torch.float16)


def centered_ce_cpu(
    student: Tensor,
    teacher: Tensor,
    center: Tensor,
    temp_student: Tensor,
    temp_target: Tensor,
    index: Tensor | None,
    weights: Tensor | None,
    needs_grad: bool,
) -> Outputs:
    """Run the C++ code on these inputs, in the order of the registered op."""
    assert LIBRARY is not None
    rows, width = student.shape
    s, t, c = (x.to(torch.float32).contiguous() for x in (student, teacher, center))
    index64 = None if index is None else index.to(torch.int64).contiguous()
    w = None if weights is None else weights.to(torch.float32).contiguous()
    loss, center_sum = s.new_empty(()), s.new_empty(width)
    grad = torch.empty_like(s) if needs_grad else s.new_empty(0)
    status = LIBRARY.sjepa_centered_ce_f32(
        _pointer(s),
        _pointer(t),
        _pointer(c),
        _pointer(index64),
        _pointer(w),
        ctypes.c_int64(rows),
        ctypes.c_int64(t.shape[0]),
        ctypes.c_int64(width),
        _pointer(temp_student),
        _pointer(temp_target),
        _pointer(loss),
        _pointer(center_sum),
        _pointer(grad if needs_grad else None),
        ctypes.c_int(torch.get_num_threads()),
    )
    if status == 1:
        raise ValueError("teacher_index: an id outside the teacher's rows; ids must lie within it")
    if status != 0:
        raise MemoryError("centered_softmax_cross_entropy: no memory for its scratch rows")
    return loss, center_sum, grad.to(student.dtype)


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
