# SPDX-License-Identifier: Apache-2.0
"""Linear layers of a CPU that do not keep their input for the backward but compute it again.

A GPU's blocks use `residual.py` instead: there memory is no limit and passes over it are.
LayerNorm and GELU cost a pass over memory; what they return is one and four times the residual
stream. The layer behind them needs it once more in the backward, where it is cheaper to compute
again than to have kept. A compiled graph has the plain layers: what it keeps, its compiler decides.
Shapes: (..., D) or (..., H) inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import gelu, layer_norm, linear

from sjepa_kernels.blocks.fused_mlp import product_dtype


def norm_linear(x: Tensor, norm: nn.LayerNorm, layer: nn.Linear) -> Tensor:
    """Return `layer(norm(x))`, (..., O); x and two numbers per row are kept for the backward.

    Norm and layer have weight and bias. The result has autocast's dtype where that is on.
    """
    if torch.compiler.is_compiling():
        plain: Tensor = layer(norm(x))
        return plain
    out: Tensor = _NormLinear.apply(x, norm.weight, norm.bias, layer.weight, layer.bias, norm.eps)
    return out


def gelu_linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """Return `layer(gelu(x))` with the exact GELU, (..., O); x alone is kept for the backward.

    The layer has a bias. The result has autocast's dtype where that is on.
    """
    if torch.compiler.is_compiling():
        plain: Tensor = layer(gelu(x))
        return plain
    out: Tensor = _GeluLinear.apply(x, layer.weight, layer.bias)
    return out


def _linear_gradients(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of a linear layer's input, weight and bias, from its input `x`."""
    rows = grad.reshape(-1, grad.shape[-1])
    grad_weight = rows.t() @ x.reshape(-1, x.shape[-1])
    # Autocast's copy of the weight is not kept either: all of them are a tenth of a step's memory.
    return grad @ weight.to(grad.dtype), grad_weight.to(weight.dtype), rows.sum(0)


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor:
        dot = product_dtype(x)
        normal, mean, rstd = torch.native_layer_norm(x, scale.shape, scale, shift, eps)
        ctx.save_for_backward(x, mean, rstd, scale, shift, weight, bias)
        ctx.eps = eps
        return linear(normal.to(dot), weight.to(dot), bias.to(dot))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, scale, shift, weight, bias = ctx.saved_tensors
        normal = layer_norm(x, scale.shape, scale, shift, ctx.eps).to(grad.dtype)
        grad_normal, grad_weight, grad_bias = _linear_gradients(grad, normal, weight)
        del normal
        grad_x, grad_scale, grad_shift = torch.ops.aten.native_layer_norm_backward(
            *(grad_normal.to(x.dtype), x, scale.shape, mean, rstd, scale, shift),
            [True, True, True],
        )
        grad_bias = grad_bias.to(bias.dtype)
        return grad_x, grad_scale, grad_shift, grad_weight, grad_bias, None


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        dot = product_dtype(x)
        ctx.save_for_backward(x, weight, bias)
        return linear(gelu(x).to(dot), weight.to(dot), bias.to(dot))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        hidden = gelu(x).to(grad.dtype)
        grad_hidden, grad_weight, grad_bias = _linear_gradients(grad, hidden, weight)
        del hidden
        grad_x = grad_hidden.to(x.dtype)
        torch.ops.aten.gelu_backward.grad_input(grad_x, x, grad_input=grad_x)
        return grad_x, grad_weight, grad_bias.to(bias.dtype)
