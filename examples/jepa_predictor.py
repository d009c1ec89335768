"""The predictor of I-JEPA and V-JEPA without repeat, cat and gather.

Paste `PackedPredictor` where a predictor repeats its mask token, adds two gathered copies of the
position table and concatenates; `full_grid` is for decoders that want every token in grid order.

Shapes: B sequences, S rows (frames), V columns (or a frame's patches), N = S*V tokens, K context
tokens, Q target tokens, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from sjepa_kernels import pack_tokens, scatter_mask_tokens


def concatenated_tables(rows_SA: Tensor, columns_VC: Tensor) -> tuple[Tensor, Tensor]:
    """Return tables whose sum at s V + v is the concatenation [rows[s] | columns[v]], D = A + C.

    This is the sine-cosine table of image and video models, which gives a part of the width to
    each axis. For a learned table of N free rows use `torch.zeros(1, D)` and the table itself.
    """
    return pad(rows_SA, (0, columns_VC.shape[1])), pad(columns_VC, (rows_SA.shape[1], 0))


class PackedPredictor(nn.Module):
    """Predicts the targets' features from the context's.

    Under autocast the stream is float32, as where a bfloat16 embedding meets float32 tables.

    Args:
        context_width: Width of the context features and of the predictions.
        tables: Position tables (S, D) and (V, D), summed to one position per token.
        blocks: Transformer blocks of width D, without an order of tokens of their own.
    """

    position_temporal: Tensor
    position_spatial: Tensor

    def __init__(
        self, context_width: int, tables: tuple[Tensor, Tensor], blocks: nn.Sequential
    ) -> None:
        super().__init__()
        width = tables[0].shape[1]
        self.embed = nn.Linear(context_width, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.register_buffer("position_temporal", tables[0])
        self.register_buffer("position_spatial", tables[1])
        self.blocks = blocks
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, context_width)

    def forward(self, context: Tensor, ids_keep_BK: Tensor, ids_mask_BQ: Tensor) -> Tensor:
        """Return the predictions (B, Q, context width) for context (B, K, context width)."""
        tables = self.position_temporal, self.position_spatial
        visible_BKD = self.embed(context)
        x = pack_tokens(visible_BKD, self.mask_token, ids_keep_BK, ids_mask_BQ, *tables)
        x = self.blocks(x)[:, ids_keep_BK.shape[1] :]
        predictions: Tensor = self.project(self.norm(x))
        return predictions


def full_grid(
    visible_BKD: Tensor, mask_token_D: Tensor, ids_keep_BK: Tensor, tables: tuple[Tensor, Tensor]
) -> Tensor:
    """Return all tokens (B, N, D) in grid order, with positions, as a MAE decoder takes them."""
    return scatter_mask_tokens(visible_BKD, mask_token_D, ids_keep_BK, *tables)
