"""Ways to spoil an argument, shared by the cases of test_wrong_arguments.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Spoil = Callable[[Tensor], Tensor]
SHAPES: dict[str, Spoil] = {
    "one axis more": lambda x: x[None],
    "no axes": lambda x: x.flatten()[0],
    "one axis": lambda x: x.flatten(),
    "wider": lambda x: torch.cat([x, x[..., :1]], dim=-1),
    "narrower": lambda x: x[..., 1:],
}
PLACES: dict[str, Spoil] = {"another device": lambda x: x.to("meta")}
NOT_FLOATS: dict[str, Spoil] = {
    str(dtype): lambda x, dtype=dtype: x.to(dtype)
    for dtype in (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn)
}
NOT_IDS: dict[str, Spoil] = {
    str(dtype): lambda x, dtype=dtype: x.to(dtype)
    for dtype in (torch.float32, torch.bool, torch.int16, torch.uint8, torch.complex64)
}
RANGES: dict[str, Spoil] = {
    "negative": lambda x: x - 50,
    "too large": lambda x: x + 50,
    "far too large": lambda x: x + 2**40,
    "one too large": lambda x: torch.cat([x.flatten()[:-1], x.new_tensor([50])]).view_as(x),
}
FLOAT = SHAPES | PLACES | NOT_FLOATS
VECTOR = {way: spoil for way, spoil in FLOAT.items() if way != "one axis"}
IDS = SHAPES | PLACES | NOT_IDS | RANGES
NOT_INT64: dict[str, Spoil] = {
    str(dtype): lambda x, dtype=dtype: x.to(dtype)
    for dtype in (torch.float32, torch.bool, torch.int32)
}
NAN, INF = float("nan"), float("inf")
WRONG_POSITIVE = [0, -1.0, NAN, INF, torch.tensor(0.0), torch.tensor(NAN), torch.ones(2)]
WRONG_SHARE = [-0.1, 1.5, NAN, INF, torch.tensor(1.5), torch.tensor(NAN), torch.ones(2)]
WRONG_CHOICE = ["", "fast", "Torch"]
COUNTS = [-1, 50]


def without(ways: dict[str, Any], *names: str) -> dict[str, Any]:
    """The other ways: those that spoil this argument too."""
    return {way: spoil for way, spoil in ways.items() if way not in names}


# What makes a valid call's arguments, what calls with them, and how each may be wrong: names of
# ways and functions that spoil the valid value, or a list of wrong values.
Ways = dict[str, Spoil] | list[Any]
Call = tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any]], object], dict[str, Ways]]
