# SPDX-License-Identifier: Apache-2.0
"""The predictor of I-JEPA and V-JEPA without repeat, cat and gather.

Paste `PackedPredictor` where a predictor repeats its context and its mask token, adds two gathered
copies of the position table and concatenates; `full_grid` is for decoders that want every token in
grid order.

Shapes: B sequences, N tokens, K context tokens, Q target tokens, P targets per context, D width.
"""

import torch
from torch import Tensor, nn

from sjepa_kernels import pack_tokens, scatter_mask_tokens


class PackedPredictor(nn.Module):
    """Predicts the targets' features from the context's.

    Under autocast the stream is float32, as where a bfloat16 embedding meets a float32 table.

    Args:
        context_width: Width of the context features and of the predictions.
        position_ND: Position table, as in those projects sines and cosines that are not trained. A
            table that is a sum, temporal[s] + spatial[v], may also be passed to the op as two.
        blocks: Transformer blocks of width D, without an order of tokens of their own.
    """

    position: Tensor

    def __init__(self, context_width: int, position_ND: Tensor, blocks: nn.Sequential) -> None:
        super().__init__()
        width = position_ND.shape[1]
        self.embed = nn.Linear(context_width, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.register_buffer("position", position_ND)
        self.blocks = blocks
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, context_width)

    def forward(self, context: Tensor, ids_keep_BK: Tensor, targets: list[Tensor]) -> Tensor:
        """Return the predictions of each sequence's targets from its context.

        Args:
            context: Features of the context tokens, (B, K, context width).
            ids_keep_BK: Which tokens they are.
            targets: P tensors of ids (B, Q), I-JEPA's four blocks for instance.

        Returns:
            (P B, Q, context width), the first targets of all sequences first.
        """
        visible_BKD, hide, repeat = self.embed(context), torch.cat(targets), len(targets)
        x = pack_tokens(
            visible_BKD, self.mask_token, ids_keep_BK, hide, self.position, repeat=repeat
        )
        x = self.blocks(x)[:, ids_keep_BK.shape[1] :]
        predictions: Tensor = self.project(self.norm(x))
        return predictions


def full_grid(
    visible_BKD: Tensor, mask_token_D: Tensor, ids_keep_BK: Tensor, position_ND: Tensor
) -> Tensor:
    """Return all tokens (B, N, D) in grid order, with positions, as a MAE decoder takes them."""
    return scatter_mask_tokens(visible_BKD, mask_token_D, ids_keep_BK, position_ND)
