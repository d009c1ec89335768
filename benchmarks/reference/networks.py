"""The three networks of the plain S-JEPA step, with every intermediate tensor materialised.

Written from the equations (method sections 2 and 3) in the way the method's family of code works:
attention as four separate tensors (or, with `sdpa`, as one call), all tokens embedded before most
are dropped, mask tokens repeated, concatenated and gathered through an index as wide as the
features. Parameter names equal those of `sjepa_fast.models`, so that weights can be carried over
(`ReferenceStep.load_weights`).

Shapes: B sequences (clips x bodies), T frames, V joints, C coordinates, S segments, N = S*V
tokens, K kept tokens, D width, H heads, l frames per segment.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ReferenceBlock(nn.Module):
    """Pre-norm block: x += Attn(LN x), then x += MLP(LN x).

    The (B, H, N, N) scores are kept, unless `sdpa` hands attention to PyTorch's fused function.
    """

    def __init__(self, width: int, heads: int, sdpa: bool) -> None:
        super().__init__()
        self.heads = heads
        self.sdpa = sdpa
        self.scale = (width // heads) ** -0.5
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def attention(self, x_BND: Tensor) -> Tensor:
        batch, tokens, width = x_BND.shape
        qkv = self.qkv(x_BND).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q_BHND, k_BHND, v_BHND = qkv.permute(2, 0, 3, 1, 4)
        if self.sdpa:
            mixed_BHND = nn.functional.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND)
        else:
            scores = q_BHND @ k_BHND.transpose(-2, -1)
            scores = scores * self.scale
            weights = scores.softmax(dim=-1)
            mixed_BHND = weights @ v_BHND
        mixed = mixed_BHND.transpose(1, 2).reshape(batch, tokens, width)
        out: Tensor = self.proj(mixed)
        return out

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.attention(self.norm1(x_BND))
        hidden = nn.functional.gelu(self.fc1(self.norm2(x_BND)))
        out: Tensor = x_BND + self.fc2(hidden)
        return out


class ReferenceEmbed(nn.Module):
    """Tubelet embedding as a convolution over all tokens, plus the two position tables."""

    def __init__(self, segments: int, joints: int, coords: int, length: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(coords, width, kernel_size=(length, 1), stride=(length, 1))
        self.temporal = nn.Parameter(torch.empty(1, segments, 1, width))
        self.spatial = nn.Parameter(torch.empty(1, 1, joints, width))

    def forward(self, x_BTVC: Tensor) -> Tensor:
        grid_BDSV = self.proj(torch.einsum("btvc->bctv", x_BTVC))
        grid_BSVD = torch.einsum("bdsv->bsvd", grid_BDSV)
        return (grid_BSVD + self.temporal + self.spatial).flatten(1, 2)


class ReferenceEncoder(nn.Module):
    """Embedding, blocks and final norm: 6,336,000 parameters at the paper's size."""

    def __init__(
        self,
        segments: int,
        joints: int,
        coords: int,
        length: int,
        width: int,
        depth: int,
        heads: int,
        sdpa: bool = False,
    ) -> None:
        super().__init__()
        self.embed = ReferenceEmbed(segments, joints, coords, length, width)
        self.blocks = nn.ModuleList(ReferenceBlock(width, heads, sdpa) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        initialise(self)

    def forward(self, x_BTVC: Tensor, ids_keep_BK: Tensor | None = None) -> Tensor:
        x_BND = self.embed(x_BTVC)
        if ids_keep_BK is not None:
            x_BND = x_BND.gather(1, ids_keep_BK.unsqueeze(-1).repeat(1, 1, x_BND.shape[-1]))
        for block in self.blocks:
            x_BND = block(x_BND)
        out: Tensor = self.norm(x_BND)
        return out


class ReferencePredictor(nn.Module):
    """Predictor over the whole grid: 4,095,232 parameters at the paper's size."""

    def __init__(
        self, segments: int, joints: int, width: int, depth: int, heads: int, sdpa: bool = False
    ) -> None:
        super().__init__()
        self.grid = (segments, joints)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.proj_in = nn.Linear(width, width)
        self.temporal = nn.Parameter(torch.empty(1, segments, 1, width))
        self.spatial = nn.Parameter(torch.empty(1, 1, joints, width))
        self.blocks = nn.ModuleList(ReferenceBlock(width, heads, sdpa) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.proj_out = nn.Linear(width, width)
        initialise(self)

    def forward(self, visible_BKD: Tensor, ids_restore_BN: Tensor) -> Tensor:
        batch, kept, width = visible_BKD.shape
        mask_tokens = self.mask_token.repeat(batch, ids_restore_BN.shape[1] - kept, 1)
        shuffled_BND = torch.cat([visible_BKD, mask_tokens], dim=1)
        x_BND = shuffled_BND.gather(1, ids_restore_BN.unsqueeze(-1).repeat(1, 1, width))
        x_BND = self.proj_in(x_BND)
        grid_BSVD = x_BND.view(batch, *self.grid, width) + self.temporal + self.spatial
        x_BND = grid_BSVD.flatten(1, 2)
        for block in self.blocks:
            x_BND = block(x_BND)
        out: Tensor = self.proj_out(self.norm(x_BND))
        return out


def initialise(module: nn.Module) -> None:
    """Positions and mask token truncated normal 0.02; Linear and tubelet Xavier; zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(part.weight.view(part.weight.shape[0], -1))
            assert part.bias is not None
            nn.init.zeros_(part.bias)
    for name, weight in module.named_parameters():
        if name.rsplit(".", 1)[-1] in ("temporal", "spatial", "mask_token"):
            nn.init.trunc_normal_(weight, std=0.02)
