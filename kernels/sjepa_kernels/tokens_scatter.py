"""Visible tokens put back into the full grid, mask tokens elsewhere, positions added.

Shapes: B sequences, S segments, V joints, N = S*V tokens, K kept, D width.
"""

from torch import Tensor

from sjepa_kernels._dispatch import choose
from sjepa_kernels._tokens import check_tokens, position_table, working_dtype


def scatter_mask_tokens_ref(
    visible_BKD: Tensor,
    mask_token_D: Tensor,
    ids_keep_BK: Tensor,
    position_temporal_SD: Tensor,
    position_spatial_VD: Tensor,
) -> Tensor:
    """Plain PyTorch form of `scatter_mask_tokens`."""
    dtype = working_dtype(visible_BKD)
    batch, _, width = visible_BKD.shape
    position_ND = position_table(position_temporal_SD, position_spatial_VD, dtype)
    content = mask_token_D.to(dtype).expand(batch, position_ND.shape[0], width)
    index = ids_keep_BK.long()[:, :, None].expand(-1, -1, width)
    content = content.scatter(1, index, visible_BKD.to(dtype))
    return (content + position_ND).to(visible_BKD.dtype)


def scatter_mask_tokens(
    visible_BKD: Tensor,
    mask_token_D: Tensor,
    ids_keep_BK: Tensor,
    position_temporal_SD: Tensor,
    position_spatial_VD: Tensor,
    *,
    impl: str = "auto",
) -> Tensor:
    """Build the predictor's full token grid.

    out[b, n] = (visible[b, k] if ids_keep[b, k] == n else mask_token) + pos[n], with
    pos[s V + v] = temporal[s] + spatial[v]; the sum is formed in float32 (float64 for float64)
    and rounded once. What MAE-style decoders write as repeat, cat, gather and two adds.

    Args:
        visible_BKD: Visible tokens; any K from 0 to N.
        mask_token_D: The token that stands for what is hidden.
        ids_keep_BK: int32 or int64 token ids of the visible tokens, in any order, none twice in
            a row.
        position_temporal_SD: One row a segment.
        position_spatial_VD: One row a joint.
        impl: "auto", "triton", "cpu" or "torch".

    Returns:
        (B, N, D) in the dtype of `visible_BKD`; differentiable in all four float inputs.

    Raises:
        TypeError: A dtype is not usable.
        ValueError: A shape, device, id or `impl` is not usable.
    """
    check_tokens(
        visible_BKD,
        mask_token_D,
        {"ids_keep": ids_keep_BK},
        position_temporal_SD,
        position_spatial_VD,
    )
    choose(impl, visible_BKD.device)
    return scatter_mask_tokens_ref(
        visible_BKD, mask_token_D, ids_keep_BK, position_temporal_SD, position_spatial_VD
    )
