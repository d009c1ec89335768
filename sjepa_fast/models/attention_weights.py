# SPDX-License-Identifier: Apache-2.0
"""What a block's attention weighs, which the blocks themselves never write down.

Shapes: B sequences (bodies), H heads, N tokens, D width, P numbers of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sjepa_fast.models.encoder import SkeletonTransformer
from sjepa_fast.models.residual import Residual
from sjepa_fast.models.transformer import Block


@torch.no_grad()
def attention_weights(
    encoder: SkeletonTransformer, tubelets_BNP: Tensor, layer: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weights of a block's attention, counted from 0, its values, and the features.

    Weights (B, H, N, N): each row, of the token that looks, has the sum 1. Values (B, H, N, D / H)
    are what they mix. The blocks themselves never write the weights down. Features (B, N, D) are
    what the encoder returns.
    """
    block = encoder.blocks[layer]
    assert isinstance(block, Block)
    found: list[Tensor] = []

    def keep(_: torch.nn.Module, inputs: tuple[Residual, ...]) -> None:
        found.append(inputs[0].settled())

    hook = block.register_forward_pre_hook(keep)
    try:
        features = encoder(tubelets_BNP)
    finally:
        hook.remove()
    qkv_BN3HD = block.qkv(block.norm1(found[0])).unflatten(2, (3, block.heads, -1))
    q_BHND, k_BHND, v_BHND = qkv_BN3HD.permute(2, 0, 3, 1, 4).unbind(0)
    scores = q_BHND @ k_BHND.transpose(2, 3) / q_BHND.shape[-1] ** 0.5
    return scores.softmax(dim=-1), v_BHND, features
