# SPDX-License-Identifier: Apache-2.0
"""Pre-norm transformer blocks of the encoders and the predictor.

Shapes: B sequences (clips x bodies), N tokens, Q wanted ones or queries, K keys, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from sjepa_fast.models.recompute import gelu_linear, norm_linear
from sjepa_fast.models.residual import Residual, add_norm, fuses, linear_before
from sjepa_fast.models.shadow import product_bias
from sjepa_kernels import attention, gelu_mlp, self_attention


def mlp_parts(width: int) -> tuple[nn.LayerNorm, nn.Linear, nn.Linear]:
    """Return norm and layers of a block's MLP, four times as wide inside."""
    return nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)


def branch_scale(width: int, layer_scale: float) -> nn.Module:
    """Return the factors of a residual branch, or nothing that has an effect."""
    return LayerScale(width, layer_scale) if layer_scale else nn.Identity()


class Block(nn.Module):
    """One pre-norm block: x += Attn(LN x), then x += MLP(LN x) (method: all four papers).

    `drop_path` is the probability of leaving out a branch, or None; see `set_drop_path`. The
    factors on both branches begin with `layer_scale`; 0 is none.
    """

    drop_path: Tensor | None

    def __init__(self, width: int, heads: int, layer_scale: float = 0.0) -> None:
        super().__init__()
        # A tensor, so that blocks with different probabilities share one compilation.
        self.register_buffer("drop_path", None, persistent=False)
        self.heads = heads
        # Of a GPU: its attention, and whether it keeps the MLP's activation for the backward or
        # computes it again.
        self.attention, self.keep = "auto", True
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2, self.fc1, self.fc2 = mlp_parts(width)
        self.scale1, self.scale2 = (branch_scale(width, layer_scale) for _ in range(2))

    @property
    def all_fused(self) -> bool:
        """Whether a GPU runs nothing but products and fused operations, and no compiler is of use.

        What changes a branch before it is added takes passes of its own.
        """
        return self.drop_path is None and isinstance(self.scale1, nn.Identity)

    def forward(self, residual: Residual, first: int = 0) -> Residual:
        """Return the block's output for the tokens from `first` on, (B, N - first, D).

        Keys and values come from all tokens; queries and all that follows only from the tokens
        whose output is wanted, which changes no value of theirs.
        """
        if fuses(residual.stream):
            return self._forward_fused(residual, first)
        x_BND = residual.settled()
        qkv_BN3HD = self._packed(norm_linear(x_BND, self.norm1, self.qkv))
        mixed_BQD = self_attention(qkv_BN3HD, first=first).flatten(2)
        x_BQD = x_BND[:, first:] + self._apply_drop_path(self.scale1(self.proj(mixed_BQD)))
        hidden = norm_linear(x_BQD, self.norm2, self.fc1)
        branch = self._apply_drop_path(self.scale2(gelu_linear(hidden, self.fc2)))
        return Residual(x_BQD + branch)

    def _forward_fused(self, residual: Residual, first: int) -> Residual:
        """Compute the same in fewer passes, and leave the last addition to the next norm."""
        normal, x_BND = add_norm(residual, self.norm1)
        qkv_BN3HD = self._packed(linear_before(normal, self.qkv))
        mixed_BND = self_attention(
            qkv_BN3HD, first=first, impl=self.attention, added_bias=self.qkv.bias
        ).flatten(2)
        # What changes a branch after its bias was added needs the bias' own gradient.
        plain = self.all_fused
        if plain:
            attended = Residual(
                x_BND[:, first:], linear_before(mixed_BND, self.proj), self.proj.bias
            )
        else:
            branch = self._apply_drop_path(self.scale1(self.proj(mixed_BND)))
            attended = Residual(x_BND[:, first:], branch)
        normal, x_BQD = add_norm(attended, self.norm2)
        fc1, fc2 = self.fc1, self.fc2
        bias = product_bias(fc2) if plain else fc2.bias
        branch = gelu_mlp(normal, fc1.weight, fc1.bias, fc2.weight, bias, keep=self.keep)
        if plain:
            return Residual(x_BQD, branch, fc2.bias)
        return Residual(x_BQD, self._apply_drop_path(self.scale2(branch)))

    def _packed(self, qkv: Tensor) -> Tensor:
        batch, tokens, three_widths = qkv.shape
        return qkv.view(batch, tokens, 3, self.heads, three_widths // (3 * self.heads))

    def _apply_drop_path(self, branch_BND: Tensor) -> Tensor:
        if self.drop_path is None or not self.training:
            return branch_BND
        drawn = torch.rand(len(branch_BND), 1, 1, device=branch_BND.device)
        factor = (drawn >= self.drop_path) / (1 - self.drop_path)
        return branch_BND * factor.to(branch_BND.dtype)


def set_drop_path(blocks: Sequence[nn.Module], rate: float) -> None:
    """Let training leave out whole residual branches, a sequence at a time (stochastic depth).

    The probability rises linearly from 0 in the first block to `rate` in the last (method 6.2), 0
    to below 1; kept branches are divided by 1 - p, so that the mean stays. Evaluation leaves
    nothing out.
    """
    for i, block in enumerate(blocks):
        share = i / max(1, len(blocks) - 1)
        device = next(block.parameters()).device
        block.register_buffer(
            "drop_path",
            torch.tensor(rate * share, device=device) if rate > 0 else None,
            persistent=False,
        )


def set_gpu_forms(blocks: Iterable[nn.Module], attention: str, keep: bool) -> None:
    """Choose what blocks do on a GPU.

    Args:
        blocks: Those that attend to themselves are set.
        attention: What `self_attention` takes as `impl`.
        keep: Whether the MLP's activation is kept for the backward, or made again.
    """
    for block in blocks:
        if isinstance(block, Block):
            block.attention, block.keep = attention, keep


class CrossBlock(nn.Module):
    """A pre-norm block whose tokens look at a fixed memory and not at each other.

    x += Attn(q = LN x, k = v = LN memory), then x += MLP(LN x).
    """

    all_fused = False

    def __init__(self, width: int, heads: int, layer_scale: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.norm_memory = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm2, self.fc1, self.fc2 = mlp_parts(width)
        self.scale1, self.scale2 = (branch_scale(width, layer_scale) for _ in range(2))

    def forward(self, x_BQD: Tensor, memory_BKD: Tensor) -> Tensor:
        """Return the block's output (B, Q, D)."""
        batch, tokens, width = x_BQD.shape
        q_BHQD = self.q(self.norm1(x_BQD)).view(batch, tokens, self.heads, -1).transpose(1, 2)
        kv = self.kv(self.norm_memory(memory_BKD)).view(batch, -1, 2, self.heads, q_BHQD.shape[3])
        k_BHKD, v_BHKD = kv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed_BHQD = attention(q_BHQD, k_BHKD, v_BHKD)
        mixed_BQD = mixed_BHQD.transpose(1, 2).reshape(batch, tokens, width)
        x_BQD = x_BQD + self.scale1(self.proj(mixed_BQD))
        hidden = torch.nn.functional.gelu(self.fc1(self.norm2(x_BQD)))
        out: Tensor = x_BQD + self.scale2(self.fc2(hidden))
        return out


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch (CaiT; Skeleton2vec, method 2)."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self, x_BND: Tensor) -> Tensor:
        """Return the scaled branch, same shape."""
        return x_BND * self.gamma


def init_weights(module: nn.Module) -> None:
    """Initialise in place as MAMP does: Linear Xavier-uniform with zero bias, LayerNorm 1 and 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def learned_table(rows: int, width: int) -> nn.Parameter:
    """Return a (rows, width) learned table, truncated normal with std 0.02."""
    table = nn.Parameter(torch.empty(rows, width))
    nn.init.trunc_normal_(table, std=0.02)
    return table
