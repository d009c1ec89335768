"""Pre-norm transformer blocks of the encoders and the predictor.

Shapes: B sequences (clips x bodies), N tokens, Q wanted ones or queries, K keys, D width, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sjepa_kernels import attention


class Block(nn.Module):
    """One pre-norm block: x += Attn(LN x), then x += MLP(LN x) (method: all four papers).

    Args:
        width: Token width D.
        heads: Attention heads; must divide the width.
        mlp_ratio: Hidden width of the MLP over D.
        layer_scale: First value of the learned factors on both branches; 0 is none.
    """

    def __init__(
        self, width: int, heads: int, mlp_ratio: float = 4.0, layer_scale: float = 0.0
    ) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.scale1 = LayerScale(width, layer_scale) if layer_scale else nn.Identity()
        self.scale2 = LayerScale(width, layer_scale) if layer_scale else nn.Identity()

    def forward(self, x_BND: Tensor, first: int = 0) -> Tensor:
        """Return the block's output for the tokens from `first` on.

        Keys and values come from all tokens; queries and all that follows only from the tokens
        whose output is wanted, which changes no value of theirs.

        Args:
            x_BND: All tokens.
            first: The first token whose output is wanted.

        Returns:
            (B, N - first, D).
        """
        batch, tokens, width = x_BND.shape
        qkv = self.qkv(self.norm1(x_BND)).view(batch, tokens, 3, self.heads, width // self.heads)
        q_BHND, k_BHND, v_BHND = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed_BHQD = attention(q_BHND[:, :, first:], k_BHND, v_BHND)
        mixed_BQD = mixed_BHQD.transpose(1, 2).reshape(batch, tokens - first, width)
        x_BQD = x_BND[:, first:] + self.scale1(self.proj(mixed_BQD))
        hidden = torch.nn.functional.gelu(self.fc1(self.norm2(x_BQD)))
        out: Tensor = x_BQD + self.scale2(self.fc2(hidden))
        return out


class CrossBlock(nn.Module):
    """A pre-norm block whose tokens look at a fixed memory and not at each other.

    x += Attn(q = LN x, k = v = LN memory), then x += MLP(LN x).

    Args:
        width: Token width D.
        heads: Attention heads; must divide the width.
        mlp_ratio: Hidden width of the MLP over D.
        layer_scale: First value of the learned factors on both branches; 0 is none.
    """

    def __init__(
        self, width: int, heads: int, mlp_ratio: float = 4.0, layer_scale: float = 0.0
    ) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.norm_memory = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.scale1 = LayerScale(width, layer_scale) if layer_scale else nn.Identity()
        self.scale2 = LayerScale(width, layer_scale) if layer_scale else nn.Identity()

    def forward(self, x_BQD: Tensor, memory_BKD: Tensor) -> Tensor:
        """Return the block's output.

        Args:
            x_BQD: Tokens.
            memory_BKD: What they attend to.

        Returns:
            (B, Q, D).
        """
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
    """A learned factor for each channel of a residual branch (CaiT; Skeleton2vec, method 2).

    Args:
        width: D.
        start: First value of all factors.
    """

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
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def learned_table(rows: int, width: int) -> nn.Parameter:
    """Return a (rows, width) learned table, truncated normal with std 0.02."""
    table = nn.Parameter(torch.empty(rows, width))
    nn.init.trunc_normal_(table, std=0.02)
    return table
