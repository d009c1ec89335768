# SPDX-License-Identifier: Apache-2.0
"""Multiplies a gradient computed in the forward by the gradient of the loss, most often 1."""

import ctypes

import torch
from torch import Tensor

from sjepa_kernels._triton import TL_DTYPES, cdiv, compute_dtype, tl, triton

_BLOCK = 4096


@triton.jit
def _scale_kernel(grad, factor, count, COMPUTE: tl.constexpr, BLOCK: tl.constexpr):
    """Multiply in place; where the factor is 1, known on the device alone, touch nothing."""
    f = tl.load(factor).to(COMPUTE)
    if f != 1.0:
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = i < count
        g = tl.load(grad + i, mask=inside, other=0.0).to(COMPUTE)
        tl.store(grad + i, g * f, mask=inside)


def _scale_(grad: Tensor, factor: Tensor) -> None:
    count = grad.numel()
    compute = TL_DTYPES[compute_dtype(grad.dtype)]
    _scale_kernel[(cdiv(count, _BLOCK),)](grad, factor, count, COMPUTE=compute, BLOCK=_BLOCK)


def scaled(grad: Tensor, share: Tensor, factor: Tensor | None, impl: str) -> Tensor | None:
    """Return share * factor * grad, in the dtype of `grad`, inside a backward.

    `grad` is saved, contiguous memory with no other user, made by `impl`. It is reused unless the
    graph is kept for another backward, which would read it again. `share` is 0-dim, or empty for 1.
    `factor` is 0-dim.
    """
    if factor is None:
        return None
    if share.numel():
        factor = factor * share
    if torch.compiler.is_compiling() or type(factor) is not Tensor:
        return _product(grad, factor)
    if impl == "triton":
        if torch._C._autograd._get_current_graph_task_keep_graph():
            grad = grad.clone()
        _scale_(grad, factor)
        return grad
    if factor.dtype == torch.float32 and factor.device.type == "cpu" and _is_one(factor):
        return grad
    return _product(grad, factor)


def _product(grad: Tensor, factor: Tensor) -> Tensor:
    """Return the product, rounded once; a loss scale as a float16 would be infinity."""
    return (grad.to(compute_dtype(grad.dtype)) * factor).to(grad.dtype)


def _is_one(scalar: Tensor) -> bool:
    """Whether a float32 CPU scalar is 1, read in place: no operator runs, so none can be traced."""
    return ctypes.c_float.from_address(scalar.data_ptr()).value == 1
