"""Ways to spoil an argument, shared by the files of `ops/`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Spoil = Callable[[Tensor], Tensor]
# How an argument may be wrong: names of ways and functions that spoil the valid value, or a list
# of wrong values.
Ways = dict[str, Spoil] | list[Any]


def casts(*dtypes: torch.dtype) -> dict[str, Spoil]:
    """Casts to dtypes that an op does not take."""

    def cast(dtype: torch.dtype) -> Spoil:
        return lambda x: x.to(dtype)

    return {str(dtype): cast(dtype) for dtype in dtypes}


def without(ways: dict[str, Spoil], *names: str) -> dict[str, Spoil]:
    """The other ways: those that spoil this argument too."""
    return {way: spoil for way, spoil in ways.items() if way not in names}


SHAPES: dict[str, Spoil] = {
    "one axis more": lambda x: x[None],
    "no axes": lambda x: x.flatten()[0],
    "one axis": lambda x: x.flatten(),
    "wider": lambda x: torch.cat([x, x[..., :1]], dim=-1),
    "narrower": lambda x: x[..., 1:],
}
PLACES: dict[str, Spoil] = {"another device": lambda x: x.to("meta")}
NOT_FLOATS = casts(torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn)
NOT_IDS = casts(torch.float32, torch.bool, torch.int16, torch.uint8, torch.complex64)
NOT_INTEGERS = without(NOT_IDS, "torch.int16", "torch.uint8")
NOT_INT64 = casts(torch.float32, torch.bool, torch.int32)
RANGES: dict[str, Spoil] = {
    "negative": lambda x: x - 50,
    "too large": lambda x: x + 50,
    "far too large": lambda x: x + 2**40,
    "one too large": lambda x: torch.cat([x.flatten()[:-1], x.new_tensor([50])]).view_as(x),
}
FLOAT = SHAPES | PLACES | NOT_FLOATS
VECTOR = without(FLOAT, "one axis")
IDS = SHAPES | PLACES | NOT_IDS | RANGES
# Of a vector of one number per clip.
PER_CLIP = without(SHAPES, "one axis")
TABLE = PER_CLIP | PLACES | NOT_INT64
# Of a seed or a step.
SCALAR = without(SHAPES, "no axes", "wider", "narrower") | NOT_INT64
KEYS: dict[str, Ways] = {"seed": SCALAR | PLACES, "step": SCALAR | PLACES}

NAN, INF = float("nan"), float("inf")
WRONG_POSITIVE = [0, -1.0, NAN, INF, torch.tensor(0.0), torch.tensor(NAN), torch.ones(2)]
WRONG_SHARE = [-0.1, 1.5, NAN, INF, torch.tensor(1.5), torch.tensor(NAN), torch.ones(2)]
WRONG_EPS = [0.0, -1e-5, NAN, INF]
WRONG_CHOICE: list[Any] = ["", "fast", "Torch"]
WRONG_PURPOSE = [-1, 1 << 32]
COUNTS = [-1, 50]
