"""What the two token ops share: the factored position table and the checks.

Shapes: B sequences, S segments, V joints, N = S*V tokens, K kept, Q masked, D width.
"""

import torch
from torch import Tensor

from sjepa_kernels._checks import bad_value, check_float, check_ids, check_same_device, check_shape
from sjepa_kernels._triton import compute_dtype


def position_table(temporal_SD: Tensor, spatial_VD: Tensor, dtype: torch.dtype) -> Tensor:
    """Return pos[s V + v] = temporal[s] + spatial[v], (N, D), summed in `dtype`."""
    table = temporal_SD.to(dtype)[:, None] + spatial_VD.to(dtype)[None]
    return table.flatten(0, 1)


def working_dtype(visible: Tensor) -> torch.dtype:
    """Return the dtype in which a token op adds before it rounds to the visible tokens' dtype."""
    return compute_dtype(visible.dtype)


def check_tokens(
    visible_BKD: Tensor,
    mask_token_D: Tensor,
    ids: dict[str, Tensor],
    position_temporal_SD: Tensor,
    position_spatial_VD: Tensor,
) -> None:
    """Check shapes, dtypes, devices and id ranges; the first entry of `ids` is `ids_keep`."""
    if visible_BKD.ndim != 3:
        raise bad_value("visible", tuple(visible_BKD.shape), "expected (B, K, D)")
    batch, kept, width = visible_BKD.shape
    check_shape("mask_token", mask_token_D, (width,), "(D,)")
    tables = {
        "position_temporal": position_temporal_SD,
        "position_spatial": position_spatial_VD,
    }
    for name, table in tables.items():
        if table.ndim != 2 or table.shape[1] != width:
            raise bad_value(name, tuple(table.shape), f"expected (rows, D = {width})")
    for name, tensor in {"visible": visible_BKD, "mask_token": mask_token_D, **tables}.items():
        check_float(name, tensor)
    check_same_device(visible_BKD.device, mask_token=mask_token_D, **tables, **ids)
    tokens = position_temporal_SD.shape[0] * position_spatial_VD.shape[0]
    for name, index in ids.items():
        columns = kept if name == "ids_keep" else index.shape[-1]
        check_shape(name, index, (batch, columns), "(B, K)" if name == "ids_keep" else "(B, Q)")
        check_ids(name, index, tokens)
