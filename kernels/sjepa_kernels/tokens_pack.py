"""Visible tokens followed by mask tokens, each with its position: a grid that needs no scatter.

Shapes: B sequences, S segments, V joints, N = S*V tokens, K kept, Q masked, D width.
"""

import torch
from torch import Tensor
from torch.nn.functional import embedding

from sjepa_kernels._dispatch import choose
from sjepa_kernels._tokens import check_tokens, position_table, working_dtype


def pack_tokens_ref(
    visible_BKD: Tensor,
    mask_token_D: Tensor,
    ids_keep_BK: Tensor,
    ids_mask_BQ: Tensor,
    position_temporal_SD: Tensor,
    position_spatial_VD: Tensor,
) -> Tensor:
    """Plain PyTorch form of `pack_tokens`."""
    dtype = working_dtype(visible_BKD)
    position_ND = position_table(position_temporal_SD, position_spatial_VD, dtype)
    kept = visible_BKD + embedding(ids_keep_BK, position_ND)
    masked = mask_token_D + embedding(ids_mask_BQ, position_ND)
    return torch.cat([kept, masked], dim=1).to(visible_BKD.dtype)


def pack_tokens(
    visible_BKD: Tensor,
    mask_token_D: Tensor,
    ids_keep_BK: Tensor,
    ids_mask_BQ: Tensor,
    position_temporal_SD: Tensor,
    position_spatial_VD: Tensor,
    *,
    impl: str = "auto",
) -> Tensor:
    """Build the predictor's packed tokens [visible + pos[ids_keep] | mask_token + pos[ids_mask]].

    Self-attention does not depend on the order of tokens, so the packed sequence gives what
    scatter, restore and gather would give, and the predictions are the slice [:, K:].
    pos[s V + v] = temporal[s] + spatial[v]; the sum is formed in float32 (float64 for float64)
    and rounded once.

    Args:
        visible_BKD: Visible tokens; K may be 0.
        mask_token_D: The token that stands for what is hidden.
        ids_keep_BK: int32 or int64 token ids of the visible tokens.
        ids_mask_BQ: int32 or int64 token ids to predict; Q may be 0.
        position_temporal_SD: One row a segment.
        position_spatial_VD: One row a joint.
        impl: "auto", "triton", "cpu" or "torch".

    Returns:
        (B, K + Q, D) in the dtype of `visible_BKD`; differentiable in all four float inputs.

    Raises:
        TypeError: A dtype is not usable.
        ValueError: A shape, device, id or `impl` is not usable.
    """
    check_tokens(
        visible_BKD,
        mask_token_D,
        {"ids_keep": ids_keep_BK, "ids_mask": ids_mask_BQ},
        position_temporal_SD,
        position_spatial_VD,
    )
    choose(impl, visible_BKD.device)
    return pack_tokens_ref(
        visible_BKD,
        mask_token_D,
        ids_keep_BK,
        ids_mask_BQ,
        position_temporal_SD,
        position_spatial_VD,
    )
