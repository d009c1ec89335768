"""Values of those ATen ops whose CPU form has other arguments, outputs or dtypes than CUDA's.

A rule gets the op's arguments and its outputs as CPU tensors, and fills the outputs.
Shapes: B sequences, H heads, N queries, M keys, d head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten
Outputs = list[Any]
Rule = Callable[[tuple[Any, ...], dict[str, Any], Outputs], None]


def _wide(x: Tensor) -> Tensor:
    """Half precision in float32, which is what fused kernels compute in."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _fill(outputs: Outputs, values: Any) -> None:
    for output, value in zip(outputs, values, strict=True):
        if output is not None and value is not None:
            output.copy_(value)


def _in_float32(op: Any) -> Rule:
    """The op itself, on float32 copies of half-precision arguments."""

    def rule(args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Outputs) -> None:
        wide_args, wide_kwargs = tree_map_only(Tensor, _wide, (args, kwargs))
        _fill(outputs, op(*wide_args, **wide_kwargs))

    return rule


def _bind(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by their names in the op's schema, with its defaults."""
    given = dict(zip((a.name for a in op._schema.arguments), args, strict=False)) | kwargs
    return {a.name: given.get(a.name, a.default_value) for a in op._schema.arguments}


def _scores(q: Tensor, k: Tensor, named: dict[str, Any]) -> tuple[Tensor, float]:
    """Logits (B, H, N, M) and the factor in them."""
    if named.get("dropout_p"):
        raise NotImplementedError("attention with dropout has no rule")
    scale = named.get("scale")
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    logits = (q @ k.transpose(-2, -1)) * factor
    if named.get("attn_bias") is not None:
        logits = logits + named["attn_bias"]
    if named.get("is_causal"):
        hidden = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
        logits = logits.masked_fill(hidden, -torch.inf)
    return logits, factor


def _attention(op: Any) -> Rule:
    """Softmax attention and, for the backward, the logarithm of its row sums."""

    def rule(args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Outputs) -> None:
        named = _bind(op, args, kwargs)
        q, k, v = (_wide(named[name]) for name in ("query", "key", "value"))
        logits, _ = _scores(q, k, named)
        outputs[0].copy_(logits.softmax(-1) @ v)
        lse = outputs[1]
        if lse is not None and lse.numel():
            # Rows may be padded; cuDNN's have one more axis.
            rows = lse.squeeze(-1) if lse.ndim == 4 else lse
            rows[..., : q.shape[-2]].copy_(logits.logsumexp(-1))

    return rule


def _attention_backward(op: Any) -> Rule:
    """Gradients out of the saved output and row sums, as the fused kernels take them."""

    def rule(args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Outputs) -> None:
        named = _bind(op, args, kwargs)
        grad = named["grad_out_"] if "grad_out_" in named else named["grad_out"]
        grad, q, k, v, out = map(
            _wide, (grad, named["query"], named["key"], named["value"], named["out"])
        )
        lse = named["logsumexp"]
        rows = (lse.squeeze(-1) if lse.ndim == 4 else lse)[..., : q.shape[-2]]
        logits, factor = _scores(q, k, named)
        p = (logits - rows.unsqueeze(-1)).exp()
        change = p * (grad @ v.transpose(-2, -1) - (grad * out).sum(-1, keepdim=True))
        found = (
            change @ k * factor,
            change.transpose(-2, -1) @ q * factor,
            p.transpose(-2, -1) @ grad,
        )
        _fill(outputs[:3], found)

    return rule


_FORWARD = (
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
)
_BACKWARD = (
    aten._scaled_dot_product_flash_attention_backward.default,
    aten._scaled_dot_product_efficient_attention_backward.default,
    aten._scaled_dot_product_cudnn_attention_backward.default,
)
_WIDE = (aten.native_layer_norm.default, aten.native_layer_norm_backward.default)

RULES: dict[Any, Rule] = {
    **{op: _attention(op) for op in _FORWARD},
    **{op: _attention_backward(op) for op in _BACKWARD},
    **{op: _in_float32(op) for op in _WIDE},
}
# Their outputs hold whatever lay there.
EMPTY = {
    aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default,
    aten.new_empty.default, aten.new_empty_strided.default,
}  # fmt: skip
# They change what a tensor is, not what its memory holds.
NOTHING_TO_COMPUTE = {
    aten.resize_.default, aten.set_.source_Storage, aten.set_.source_Tensor,
    aten.set_.source_Storage_storage_offset, aten.record_stream.default,
}  # fmt: skip
