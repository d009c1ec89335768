# SPDX-License-Identifier: Apache-2.0
"""Ops that hold parameters, as modules; their parameters have the names of the layers they replace.

Shapes: B sequences, S segments, V joints, N = S*V tokens, K kept, Q masked, D width, H hidden.
"""

import torch
from torch import Tensor, nn

from sjepa_kernels.blocks.fused_mlp import fused_mlp
from sjepa_kernels.blocks.residual_norm import residual_layer_norm
from sjepa_kernels.tokens.pack import pack_tokens
from sjepa_kernels.tokens.scatter import scatter_mask_tokens


class MaskTokens(nn.Module):
    """A predictor's or decoder's learned mask token (D,) and positions (S, D), (V, D), std 0.02."""

    def __init__(self, segments: int, joints: int, width: int, *, impl: str = "auto") -> None:
        super().__init__()
        self.mask_token = nn.Parameter(0.02 * torch.randn(width))
        self.position_temporal = nn.Parameter(0.02 * torch.randn(segments, width))
        self.position_spatial = nn.Parameter(0.02 * torch.randn(joints, width))
        self.impl = impl

    def forward(
        self, visible_BKD: Tensor, ids_keep_BK: Tensor, ids_mask_BQ: Tensor | None = None
    ) -> Tensor:
        """Return `pack_tokens`, (B, K + Q, D), or the full grid (B, N, D) without `ids_mask_BQ`."""
        tables, impl = (self.position_temporal, self.position_spatial), self.impl
        tokens = visible_BKD, self.mask_token, ids_keep_BK
        if ids_mask_BQ is None:
            return scatter_mask_tokens(*tokens, *tables, impl=impl)
        return pack_tokens(*tokens, ids_mask_BQ, *tables, impl=impl)


class ResidualLayerNorm(nn.Module):
    """`residual_layer_norm` with its scale and shift, named as in `nn.LayerNorm`.

    Args:
        width: D.
        eps: Added to the variance; above zero.
        impl: "auto", "triton", "cpu" or "torch".
    """

    def __init__(self, width: int, eps: float = 1e-5, *, impl: str = "auto") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps
        self.impl = impl

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalised sum for the next branch, and the sum.

        Args:
            x: Output of a branch, (..., D).
            residual: The stream, the same shape.

        Returns:
            LayerNorm(x + residual) in the dtype of `x`; x + residual in that of `residual`.
        """
        return residual_layer_norm(
            x, residual, self.weight, self.bias, eps=self.eps, impl=self.impl
        )


class FusedMlp(nn.Module):
    """`fused_mlp` with its parameters, in the layers `norm`, `fc1` and `fc2`.

    Args:
        width: D.
        hidden: H.
        eps: Added to the variance; above zero.
        impl: "auto", "triton", "cpu" or "torch".
    """

    def __init__(self, width: int, hidden: int, eps: float = 1e-5, *, impl: str = "auto") -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.impl = impl

    def forward(self, x: Tensor) -> Tensor:
        """Return x + fc2(gelu(fc1(norm(x)))) of a residual stream (..., D)."""
        norm, fc1, fc2 = self.norm, self.fc1, self.fc2
        parameters = norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias
        return fused_mlp(x, *parameters, eps=norm.eps, impl=self.impl)
