# SPDX-License-Identifier: Apache-2.0
"""Calls the C++ form of SIGReg (csrc/sigreg.cpp).

Shapes: V views, N samples, K directions, D features.
"""

import ctypes

import torch
from torch import Tensor

from sjepa_kernels.native import LIBRARY


def has_cpu_code(features: Tensor) -> bool:
    """Whether the C++ code takes these features: float32, or half precision upcast before."""
    return features.dtype in (torch.float32, torch.bfloat16, torch.float16)


def directions_cpu(seed: Tensor, step: Tensor, out_KD: Tensor) -> None:
    """Fill `out_KD`, float32, with unit directions."""
    assert LIBRARY is not None
    LIBRARY.sjepa_unit_directions_f32(
        _pointer(seed), _pointer(step.long()), *_sizes(out_KD), _pointer(out_KD), _threads()
    )


def sums_cpu(x_VNK: Tensor, parts: Tensor) -> None:
    """Fill `parts`, float64 (V, 1, 32, K)."""
    assert LIBRARY is not None
    status = LIBRARY.sjepa_sigreg_sums_f32(
        _pointer(x_VNK), *_sizes(x_VNK), _pointer(parts), _threads()
    )
    if status != 0:
        raise MemoryError("sigreg: no memory for its partial sums")


def finish_cpu(
    parts: Tensor, counts: Tensor | None, samples: int, losses: Tensor, slopes: Tensor
) -> None:
    """Fill the losses of the views, float64, and `slopes`, float32, unless it is empty."""
    assert LIBRARY is not None
    count, weight = (samples, 1.0) if counts is None else counts.tolist()
    LIBRARY.sjepa_sigreg_finish(
        _pointer(parts), ctypes.c_int64(parts.shape[0]), ctypes.c_int64(parts.shape[3]),
        ctypes.c_double(count), ctypes.c_double(weight), _pointer(losses),
        _pointer(slopes) if slopes.numel() else None,
    )  # fmt: skip


def gradient_cpu(x_VNK: Tensor, slopes: Tensor, grad_loss: Tensor, out_VNK: Tensor) -> None:
    """Fill `out_VNK` with the gradient of the projections."""
    assert LIBRARY is not None
    LIBRARY.sjepa_sigreg_gradient_f32(
        _pointer(x_VNK), _pointer(slopes), ctypes.c_float(grad_loss.item()), *_sizes(x_VNK),
        _pointer(out_VNK), _threads(),
    )  # fmt: skip


def _sizes(tensor: Tensor) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(n) for n in tensor.shape]


def _threads() -> ctypes.c_int:
    return ctypes.c_int(torch.get_num_threads())


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
