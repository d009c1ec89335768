"""The predictor: features of the masked tokens from the visible ones.

Shapes: B sequences, K visible and Q masked tokens, S segments, V joints, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sjepa_fast.models.transformer import Block, init_weights, learned_table
from sjepa_kernels import pack_tokens


class Predictor(nn.Module):
    """Packed predictor: `[visible + pos | mask token + pos]`, then a slice.

    Self-attention is permutation-equivariant, so packing gives what scattering the mask tokens
    into the grid and gathering the masked rows would give, without either. The mask token lives
    at encoder width and passes the input layer with the visible features (S-JEPA figure and
    caption); input layer, own positions, final norm and output layer are our choice after MAMP's
    decoder. With the paper's sizes it has 4,095,232 parameters.

    Args:
        segments: S.
        joints: V.
        width: D, equal to the encoder's.
        depth: Number of blocks.
        heads: Attention heads.
    """

    def __init__(self, segments: int, joints: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.proj_in = nn.Linear(width, width)
        self.temporal = learned_table(segments, width)
        self.spatial = learned_table(joints, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.proj_out = nn.Linear(width, width)
        init_weights(self)

    def forward(self, visible_BKD: Tensor, ids_keep_BK: Tensor, ids_mask_BQ: Tensor) -> Tensor:
        """Predict the features at the masked positions.

        Args:
            visible_BKD: View encoder features of the visible tokens.
            ids_keep_BK: Their token ids.
            ids_mask_BQ: Token ids to predict.

        Returns:
            Predictions (B, Q, D) in the order of `ids_mask_BQ`.
        """
        visible = self.proj_in(visible_BKD)
        mask_token = self.proj_in(self.mask_token)
        x = pack_tokens(
            visible,
            mask_token.to(visible.dtype),
            ids_keep_BK,
            ids_mask_BQ,
            self.temporal.to(visible.dtype),
            self.spatial.to(visible.dtype),
        )
        *early, last = self.blocks
        for block in early:
            x = block(x)
        # What the visible tokens would become in the last block, nobody reads.
        out: Tensor = self.proj_out(self.norm(last(x, first=ids_keep_BK.shape[1])))
        return out
