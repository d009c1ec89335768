# SPDX-License-Identifier: Apache-2.0
"""The skeleton transformer: view encoder on visible tokens, target encoder on all of them.

Shapes: B sequences (clips x bodies), N = S*V tokens, P numbers per token, K kept tokens,
D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.models.embed import TubeletEmbed
from sjepa_fast.models.residual import Residual, last_norm
from sjepa_fast.models.transformer import Block, init_weights
from sjepa_kernels import ContextualizedTargets


class SkeletonTransformer(nn.Module):
    """Tubelet embedding, `depth` pre-norm blocks, final LayerNorm; no class token.

    Source: method section 3.5. With the paper's sizes (S 30, V 25, P 12, D 256, 8 blocks) it
    has 6,336,000 parameters.

    Args:
        segments: S, time segments of a clip.
        joints: V.
        token_size: P = frames per segment x coordinates.
        width: D.
        depth: Number of blocks.
        heads: Attention heads.
        whiten: Whether tokens pass a fixed whitening first.
        layer_scale: First value of the factors on residual branches; 0 is none.
    """

    def __init__(
        self,
        segments: int,
        joints: int,
        token_size: int,
        width: int,
        depth: int,
        heads: int,
        *,
        whiten: bool = False,
        layer_scale: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed = TubeletEmbed(segments, joints, token_size, width, whiten=whiten)
        self.blocks = nn.ModuleList(
            Block(width, heads, layer_scale=layer_scale) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        # Of the residual stream, if blocks are not to add in the dtype of the embedding.
        self.stream_dtype: torch.dtype | None = None
        init_weights(self)

    @staticmethod
    def of(config: TrainConfig, joints: int) -> SkeletonTransformer:
        """Make the encoder of a configuration, for V joints with three coordinates."""
        data, model = config.data, config.model
        return SkeletonTransformer(
            data.frames // model.segment_length,
            joints,
            model.segment_length * 3,
            model.width,
            model.depth,
            model.heads,
            whiten=data.whiten > 0,
            layer_scale=model.layer_scale,
        )

    def forward(
        self,
        tubelets_BNP: Tensor,
        ids_keep_BK: Tensor | None = None,
        layers: ContextualizedTargets | None = None,
    ) -> Tensor:
        """Encode the kept tokens to (B, K, D), in the order of the ids, or all to (B, N, D).

        `layers` gets the outputs of its last `layers.layers` blocks.
        """
        residual = self.embed.pending(tubelets_BNP, ids_keep_BK)
        dtype = residual.stream.dtype
        skipped = len(self.blocks) if layers is None else len(self.blocks) - layers.layers
        for i, block in enumerate(self.blocks):
            if self.stream_dtype is not None:
                residual = residual.to(self.stream_dtype)
            residual = block(residual)
            if layers is not None and i >= skipped:
                residual = Residual(residual.settled())
                layers.add_(residual.stream)
        return last_norm(residual, self.norm, dtype)
