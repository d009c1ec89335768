# SPDX-License-Identifier: Apache-2.0
"""Calls the C++ attention on a CPU (csrc/attention*.cpp), with its gradient.

Shapes: B sequences, H heads, N queries, M keys, d head width. A packed tensor holds queries, keys
and values of all M tokens as a linear layer leaves them, (B, M, 3, H, d).
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from sjepa_kernels._library import Op
from sjepa_kernels.attention.packed import unpack
from sjepa_kernels.native import LIBRARY

_WIDTHS = (16, 32, 48, 64)


# Whether the library is built and the processor multiplies bfloat16 (AVX-512).
PROCESSOR_HAS_CODE = LIBRARY is not None and bool(LIBRARY.sjepa_has_bf16_attention())
# Whether the library is built and the processor has vectors (AVX-512 or AVX2).
PROCESSOR_HAS_FLOAT_CODE = LIBRARY is not None and bool(LIBRARY.sjepa_has_float_attention())

_CODE = {torch.bfloat16: PROCESSOR_HAS_CODE, torch.float32: PROCESSOR_HAS_FLOAT_CODE}


def has_cpu_code(q_BHNd: Tensor, k_BHMd: Tensor) -> bool:
    """Whether the C++ code takes these inputs."""
    usable = _CODE.get(q_BHNd.dtype, False) and q_BHNd.device.type == "cpu"
    filled = q_BHNd.numel() > 0 and k_BHMd.numel() > 0
    return usable and filled and q_BHNd.shape[-1] in _WIDTHS


def _call(way: str, tensors: list[Tensor], lse: Tensor) -> None:
    """Call the C++ code on tensors that begin with q and k; those it fills lie dense in width.

    `way` is forward or backward.
    """
    assert LIBRARY is not None
    kind = "attention_float" if tensors[0].dtype == torch.float32 else "attention"
    function = getattr(LIBRARY, f"sjepa_{kind}_{way}")
    batch, heads, tokens, width = tensors[0].shape
    tensors = [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]
    strides = [s for t in tensors for s in t.stride()[:3]]
    status = function(
        (ctypes.c_int64 * 5)(batch, heads, tokens, tensors[1].shape[2], width),
        (ctypes.c_int64 * len(strides))(*strides),
        *(ctypes.c_void_p(t.data_ptr()) for t in [*tensors, lse]),
        ctypes.c_int(torch.get_num_threads()),
    )
    if status != 0:
        raise MemoryError("attention: no memory for its scratch")


def _call_backward(inputs: list[Tensor], found: tuple[Tensor, ...], lse: Tensor) -> None:
    """Write the gradients of q, k and v; the inputs are q, k, v, out and its gradient."""
    _call("backward", [*inputs, *found], lse)


def _empty_token_major(x_BHNd: Tensor) -> Tensor:
    """Return an empty tensor of this shape that lies in memory as (B, N, H, d)."""
    batch, heads, tokens, width = x_BHNd.shape
    return x_BHNd.new_empty(batch, tokens, heads, width).transpose(1, 2)


def _forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mixed values and, for the backward, log2 of the row sums (B, H, N)."""
    out, lse = _forward_fake(q, k, v)
    _call("forward", [q, k, v, out], lse)
    return out, lse


def _forward_fake(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return _empty_token_major(q), q.new_empty(q.shape[:3], dtype=torch.float32)


def _gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    found = _gradients_fake(grad, q, k, v)
    _call_backward([q, k, v, out, grad], found, lse)
    return found


def _gradients_fake(*inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    _, q, k, v, *_ = inputs
    return _empty_token_major(q), _empty_token_major(k), _empty_token_major(v)


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    found: tuple[Tensor, Tensor, Tensor] = _gradients_op(grad, *ctx.saved_tensors)
    return found


def _packed_forward(qkv: Tensor, first: int) -> tuple[Tensor, Tensor]:
    return _forward(*unpack(qkv, first))


def _packed_forward_fake(qkv: Tensor, first: int) -> tuple[Tensor, Tensor]:
    return _forward_fake(*unpack(qkv, first))


def _packed_gradients(grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, first: int) -> Tensor:
    """Return the gradient of the packed tensor, which the C++ writes in place of three."""
    found = qkv.new_empty(qkv.shape)
    found[:, :first, 0].zero_()
    _call_backward([*unpack(qkv, first), out, grad], unpack(found, first), lse)
    return found


def _packed_gradients_fake(*inputs: Any) -> Tensor:
    empty: Tensor = inputs[1].new_empty(inputs[1].shape)
    return empty


def _packed_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, ctx.first = inputs
    _setup(ctx, (qkv,), output)


def _packed_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
    return _packed_gradients_op(grad, *ctx.saved_tensors, ctx.first), None


_gradients_op = Op("attention_cpu_backward", _gradients, _gradients_fake)
attention_cpu = Op("attention_cpu", _forward, _forward_fake, setup=_setup, backward=_backward)
_packed_gradients_op = Op("self_attention_cpu_backward", _packed_gradients, _packed_gradients_fake)
self_attention_cpu = Op(
    "self_attention_cpu", _packed_forward, _packed_forward_fake,
    setup=_packed_setup, backward=_packed_backward,
)  # fmt: skip
