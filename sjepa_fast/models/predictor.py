# SPDX-License-Identifier: Apache-2.0
"""The predictor: features of the masked tokens from the visible ones.

Shapes: B sequences, K visible and Q masked tokens, S segments, V joints, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sjepa_fast.models.residual import Residual, last_norm
from sjepa_fast.models.transformer import Block, CrossBlock, init_weights, learned_table
from sjepa_kernels import pack_tokens


class Predictor(nn.Module):
    """Packed predictor: `[visible + pos | mask token + pos]`, then a slice.

    Self-attention is permutation-equivariant, so packing gives what scattering the mask tokens
    into the grid and gathering the masked rows would give, without either. S-JEPA's mask token
    lives at encoder width and passes the input layer with the visible features (its figure and
    caption); its input layer, own positions, final norm and output layer are our choice after
    MAMP's decoder, whose mask token stands behind the input layer. With S-JEPA's sizes it has
    4,095,232 parameters.

    Args:
        segments: S.
        joints: V.
        width: D, equal to the encoder's.
        depth: Number of blocks.
        heads: Attention heads.
        outputs: Numbers predicted for a token; D if not given.
        embed_mask_token: Whether the mask token passes the input layer.
        layer_scale: First value of the factors on residual branches; 0 is none.
        cross: Whether mask tokens attend to the visible tokens alone, which no block then changes
            (our choice, after cross-attention decoders of masked autoencoders), instead of all
            tokens to all (the papers).
    """

    def __init__(
        self,
        segments: int,
        joints: int,
        width: int,
        depth: int,
        heads: int,
        *,
        outputs: int | None = None,
        embed_mask_token: bool = True,
        layer_scale: float = 0.0,
        cross: bool = False,
    ) -> None:
        super().__init__()
        self.embed_mask_token = embed_mask_token
        self.mask_token = nn.Parameter(torch.empty(width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.proj_in = nn.Linear(width, width)
        self.temporal = learned_table(segments, width)
        self.spatial = learned_table(joints, width)
        self.cross = cross
        block = CrossBlock if cross else Block
        self.blocks = nn.ModuleList(
            block(width, heads, layer_scale=layer_scale) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.proj_out = nn.Linear(width, width if outputs is None else outputs)
        init_weights(self)

    def forward(
        self,
        visible_BKD: Tensor,
        ids_keep_BK: Tensor,
        ids_mask_BQ: Tensor,
        *,
        masked_only: bool = True,
    ) -> Tensor:
        """Predict at the masked positions.

        Args:
            visible_BKD: View encoder features of the visible tokens.
            ids_keep_BK: Their token ids.
            ids_mask_BQ: Token ids to predict.
            masked_only: Without it, the predictions at `ids_keep_BK` come first: (B, N, O). `cross`
                has none there.

        Returns:
            Predictions (B, Q, O) in the order of `ids_mask_BQ`.
        """
        visible = self.proj_in(visible_BKD)
        mask_token = self.proj_in(self.mask_token) if self.embed_mask_token else self.mask_token
        x = pack_tokens(
            visible,
            mask_token.to(visible.dtype),
            ids_keep_BK,
            ids_mask_BQ,
            self.temporal.to(visible.dtype),
            self.spatial.to(visible.dtype),
        )
        kept = ids_keep_BK.shape[1]
        if self.cross:
            memory, x = x[:, :kept], x[:, kept:]
            for block in self.blocks:
                x = block(x, memory)
            crossed: Tensor = self.proj_out(self.norm(x))
            return crossed
        *early, last = self.blocks
        residual = Residual(x)
        for block in early:
            residual = block(residual)
        # The last block's output at the visible tokens is not used.
        residual = last(residual, kept if masked_only else 0)
        out: Tensor = self.proj_out(last_norm(residual, self.norm))
        return out
