"""Arithmetic for Triton's interpreter as GPUs have it where its own is wrong: that of bfloat16.

The interpreter keeps bfloat16 as the 16-bit integers of its bits, computes with those, and cuts
digits off where a GPU rounds to the nearest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import (
    InterpreterBuilder,
    InterpreterOptions,
    TensorHandle,
    _get_np_dtype,
)


def widened(bits: np.ndarray) -> np.ndarray:
    """float32 of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(x: np.ndarray) -> np.ndarray:
    """Bits of the nearest bfloat16, ties to even; NaN stays NaN."""
    x = np.ascontiguousarray(x, dtype=np.float32)
    bits = x.view(np.uint32).astype(np.uint64)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, nearest).astype(np.uint16).reshape(x.shape)


def _is_half(handle: TensorHandle) -> bool:
    return bool(handle.dtype.scalar == tl.bfloat16)


def _wide(handle: TensorHandle) -> TensorHandle:
    return TensorHandle(widened(handle.data), tl.float32) if _is_half(handle) else handle


class Builder(InterpreterBuilder):
    """Computes in float32 what is given as bfloat16, and rounds the result once."""

    def __init__(self) -> None:
        super().__init__()
        # Integers wrap on a GPU; to look at each for that takes a third of the time.
        self.options = InterpreterOptions(sanitize_overflow=False)

    def get_bf16(self, value: float) -> TensorHandle:
        return TensorHandle(rounded(np.array([value])), tl.bfloat16)

    def _in_float32(self, compute: Callable[..., TensorHandle], *handles: TensorHandle) -> Any:
        result = compute(*map(_wide, handles))
        if any(map(_is_half, handles)) and result.data.dtype == np.float32:
            return TensorHandle(rounded(result.data), tl.bfloat16)
        return result

    def binary_op(self, lhs: TensorHandle, rhs: TensorHandle, op: Any) -> Any:
        compute = super().binary_op
        return self._in_float32(lambda a, b: compute(a, b, op), lhs, rhs)

    def unary_op(self, arg: TensorHandle, op: Any) -> Any:
        compute = super().unary_op
        return self._in_float32(lambda a: compute(a, op), arg)

    def ternary_op(self, lhs: TensorHandle, rhs: TensorHandle, other: TensorHandle, op: Any) -> Any:
        compute = super().ternary_op
        if op is np.where:  # a choice of bits
            return compute(lhs, rhs, other, op)
        return self._in_float32(lambda a, b, c: compute(a, b, c, op), lhs, rhs, other)

    def create_fma(self, x: TensorHandle, y: TensorHandle, z: TensorHandle) -> Any:
        return self._in_float32(super().create_fma, x, y, z)

    def create_rsqrt(self, arg: TensorHandle) -> Any:
        return self._in_float32(super().create_rsqrt, arg)

    def create_erf(self, arg: TensorHandle) -> Any:
        # Triton's goes element by element.
        data = torch.erf(torch.from_numpy(np.ascontiguousarray(arg.data))).numpy()
        return TensorHandle(data, arg.dtype.scalar)

    def create_dot(self, a: TensorHandle, b: TensorHandle, d: TensorHandle, *how: Any) -> Any:
        return super().create_dot(_wide(a), _wide(b), d, *how)

    def cast_impl(self, src: TensorHandle, dst_type: Any) -> Any:
        if dst_type.scalar == tl.bfloat16:
            data = src.data if _is_half(src) else rounded(src.data)
            return TensorHandle(data, tl.bfloat16)
        return TensorHandle(_wide(src).data.astype(_get_np_dtype(dst_type)), dst_type.scalar)

    def create_fp_to_fp(self, src: TensorHandle, dst_type: Any, rounding_mode: Any) -> Any:
        if _is_half(src) or dst_type.scalar == tl.bfloat16:
            return self.cast_impl(src, dst_type)
        return super().create_fp_to_fp(src, dst_type, rounding_mode)


def _elementwise(compute: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    """A function of CUDA's library of device functions, which Triton cannot interpret."""

    def function(x: Any) -> Any:
        data = compute(torch.from_numpy(np.ascontiguousarray(x.handle.data))).numpy()
        return tl.tensor(TensorHandle(data, x.handle.dtype), x.type)

    return function


# Those that Inductor's kernels of these networks call, on float32 and float64.
LIBDEVICE = {
    name: _elementwise(getattr(torch, name))
    for name in ("rsqrt", "sqrt", "exp", "log", "log1p", "erf", "tanh", "sin", "cos")
}
