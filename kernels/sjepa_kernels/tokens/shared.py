# SPDX-License-Identifier: Apache-2.0
"""What the token ops share: the factored position table and the checks.

Shapes: B sequences, S segments, V joints, N = S*V tokens, K kept, Q masked, D width.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from sjepa_kernels._checks import bad_value, check_float, check_ids, check_same_device, check_shape
from sjepa_kernels._triton import row_block


def position_table(tables: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return pos[s V + v] = temporal[s] + spatial[v], (N, D), summed in `dtype`."""
    temporal_SD, spatial_VD = tables
    table = temporal_SD.to(dtype)[:, None] + spatial_VD.to(dtype)[None]
    return table.flatten(0, 1)


def both_tables(temporal: Tensor, spatial: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the two tables; one free table of all N tokens goes with a row of zeros, V = 1."""
    if spatial is None:
        spatial = temporal.new_zeros(1, *temporal.shape[-1:])
    return temporal, spatial


def promoted(tensors: Sequence[Tensor]) -> torch.dtype:
    """Return the dtype of the tokens: that to which `torch.cat` and addition promote these.

    Under autocast a linear layer gives half precision, and its sum with float32 tables is float32:
    as such the stream of I-JEPA, V-JEPA and the MAE family goes on.
    """
    return reduce(torch.promote_types, [tensor.dtype for tensor in tensors])


def row_tiles(width: int) -> tuple[int, int]:
    """Return (rows, columns) of a kernel's tile: about 2,048 numbers, whole rows where they fit."""
    columns = min(row_block(width), 256)
    return 2048 // columns, columns


def table_gradients(
    position_ND: Tensor, sizes: tuple[int, int], needs: list[bool], dtypes: list[torch.dtype]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of the temporal and spatial tables, of those that are needed.

    `position_ND` is the gradient of the full table, `sizes` are (S, V); `needs` and `dtypes` are
    of the two tables.
    """
    if not any(needs):
        return None, None
    grid = position_ND.view(*sizes, position_ND.shape[-1])
    temporal = grid.sum(1).to(dtypes[0]) if needs[0] else None
    spatial = grid.sum(0).to(dtypes[1]) if needs[1] else None
    return temporal, spatial


def check_tokens(
    visible_BKD: Tensor,
    mask_token_D: Tensor | None,
    ids: dict[str, Tensor],
    *position: Tensor,
    repeat: int = 1,
) -> None:
    """Check shapes, dtypes, devices and id ranges; the first entry of `ids` is `ids_keep`.

    Of the other ids there are `repeat` rows per sequence.
    """
    if visible_BKD.ndim != 3:
        raise bad_value("visible", tuple(visible_BKD.shape), "expected (B, K, D)")
    batch, kept, width = visible_BKD.shape
    tables = dict(zip(("position_temporal", "position_spatial"), position, strict=True))
    for name, table in tables.items():
        if table.ndim != 2 or table.shape[1] != width:
            raise bad_value(name, tuple(table.shape), f"expected (rows, D = {width})")
    others = dict(tables)
    if mask_token_D is not None:
        check_shape("mask_token", mask_token_D, (width,), "(D,)")
        others["mask_token"] = mask_token_D
    for name, tensor in {"visible": visible_BKD, **others}.items():
        check_float(name, tensor)
    check_same_device(visible_BKD.device, **others, **ids)
    tokens = position[0].shape[0] * position[1].shape[0]
    for name, index in ids.items():
        given = name == "ids_keep"
        letters = "(B, K)" if given else "(B, Q)" if repeat == 1 else f"({repeat} B, Q)"
        if index.ndim != 2:
            raise bad_value(name, tuple(index.shape), f"expected {letters}")
        expected = (batch, kept) if given else (repeat * batch, index.shape[1])
        check_shape(name, index, expected, letters)
        check_ids(name, index, tokens)
