# SPDX-License-Identifier: Apache-2.0
"""The residual stream between blocks, and how a GPU adds to it in the pass of the next norm.

On a GPU a step's time goes into passes over memory. So there a block does not add its last branch:
the norm that follows does, in its own pass. Its backward likewise sums the gradient of the bias of
the layer that made the branch, which would else cost a pass of its own.
Shapes: B sequences, N tokens, D width, O outputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from sjepa_fast.models.shadow import product_bias
from sjepa_kernels import residual_layer_norm
from sjepa_kernels.blocks.fused_mlp import product_dtype


class Residual(NamedTuple):
    """The residual stream (B, N, D), and a branch that is still to be added to it.

    `bias` is that of the layer that made the branch, if its gradient is still to be summed: the
    branch contains it.
    """

    stream: Tensor
    branch: Tensor | None = None
    bias: Tensor | None = None

    def settled(self) -> Tensor:
        """Return the stream with the branch added."""
        lost = self.bias is not None and torch.is_grad_enabled()
        assert not lost, "the gradient of this bias would be lost"
        return self.stream if self.branch is None else self.stream + self.branch

    def to(self, dtype: torch.dtype) -> Residual:
        """Return it with the stream in another dtype, in which it stays when branches are added."""
        return self._replace(stream=self.stream.to(dtype))


def fuses(x: Tensor) -> bool:
    """Whether norms add the branch before them: on a GPU. A CPU computes norms again instead."""
    return x.is_cuda


def add_norm(
    residual: Residual, norm: nn.LayerNorm, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Return the norm of the settled stream, in the dtype of products if none is given, and it."""
    stream, branch, bias = residual
    wanted = product_dtype(stream) if dtype is None else dtype
    first, second = (stream, None) if branch is None else (branch, stream)
    normal, total = residual_layer_norm(
        first, second, norm.weight, norm.bias, added_bias_D=bias, dtype=wanted, eps=norm.eps
    )
    return normal, total


def last_norm(residual: Residual, norm: nn.LayerNorm, dtype: torch.dtype | None = None) -> Tensor:
    """Return the norm of the settled stream, on a GPU in the dtype of products if none is given."""
    if fuses(residual.stream):
        return add_norm(residual, norm, dtype)[0]
    total = residual.settled()
    normal: Tensor = norm(total if dtype is None else total.to(dtype))
    return normal


def linear_before(x: Tensor, layer: nn.Linear) -> Tensor:
    """Return `layer(x)`, (..., O), for an op behind it that sums the gradient of the bias."""
    return linear(x, layer.weight, product_bias(layer))
