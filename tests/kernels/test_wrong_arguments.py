"""Every kind of wrong argument to every public function: an error that names the argument.

Each case takes a valid call and spoils one argument. An error from deep inside torch is a failure,
and so is a result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sjepa_kernels import (
    EmaPlan,
    attention,
    centered_softmax_cross_entropy,
    ema_update_,
    pack_tokens,
    philox4x32,
    scatter_mask_tokens,
    uniform,
    update_center_,
)

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
WRONG_POSITIVE = [0, -1.0, float("nan"), float("inf"), torch.tensor(0.0), torch.ones(2)]
WRONG_SHARE = [-0.1, 1.5, float("nan"), float("inf"), torch.ones(2)]
WRONG_CHOICE = ["", "fast", "Torch"]


def tokens() -> dict[str, Any]:
    order = torch.stack([torch.randperm(6) for _ in range(2)])
    return {
        "visible": torch.randn(2, 4, 5),
        "mask_token": torch.randn(5),
        "ids_keep": order[:, :4],
        "ids_mask": order[:, 4:],
        "position_temporal": torch.randn(2, 5),
        "position_spatial": torch.randn(3, 5),
        "impl": "auto",
    }


def loss() -> dict[str, Any]:
    return {
        "student": torch.randn(4, 6),
        "teacher": torch.randn(9, 6),
        "center": torch.randn(6),
        "temp_student": 0.1,
        "temp_target": 0.06,
        "teacher_index": torch.randint(9, (4,)),
        "row_weights": torch.rand(4),
        "impl": "auto",
    }


def ema() -> dict[str, Any]:
    return {
        "targets": torch.randn(3, 4),
        "sources": torch.randn(3, 4),
        "shadows": torch.randn(3, 4).half(),
        "momentum": 0.9,
        "impl": "auto",
    }


def call_pack(a: dict[str, Any]) -> object:
    *args, impl = a.values()
    return pack_tokens(*args, impl=impl)


def call_scatter(a: dict[str, Any]) -> object:
    *args, impl = (value for name, value in a.items() if name != "ids_mask")
    return scatter_mask_tokens(*args, impl=impl)


def call_loss(a: dict[str, Any]) -> object:
    return centered_softmax_cross_entropy(
        a["student"],
        a["teacher"],
        a["center"],
        temp_student=a["temp_student"],
        temp_target=a["temp_target"],
        teacher_index_R=a["teacher_index"],
        row_weights_R=a["row_weights"],
        impl=a["impl"],
    )


def call_ema(a: dict[str, Any]) -> object:
    lists = {name: [torch.ones(2, dtype=a[name].dtype), a[name]] for name in ("targets", "sources")}
    lists["sources"][0] = torch.ones(2)
    lists["targets"][0] = torch.ones(2)
    shadows = [torch.ones(2).half(), a["shadows"]]
    if isinstance(a["momentum"], float):
        EmaPlan(*lists.values(), shadows, impl=a["impl"]).update_(a["momentum"])
    return ema_update_(*lists.values(), a["momentum"], shadows=shadows, impl=a["impl"])


TOKENS = {
    "visible": FLOAT,
    "mask_token": VECTOR,
    "position_temporal": FLOAT,
    "position_spatial": FLOAT,
    "ids_keep": IDS,
    "impl": WRONG_CHOICE,
}
CALLS: dict[str, tuple[Callable[[], dict[str, Any]], Callable[..., object], dict[str, Any]]] = {
    "scatter_mask_tokens": (tokens, call_scatter, TOKENS),
    "pack_tokens": (
        tokens,
        call_pack,
        TOKENS | {"ids_mask": {k: v for k, v in IDS.items() if k not in ("wider", "narrower")}},
    ),
    "centered_softmax_cross_entropy": (
        loss,
        call_loss,
        {
            "student": FLOAT | {"no rows": lambda x: x[:0], "no columns": lambda x: x[:, :0]},
            "teacher": FLOAT | {"no rows": lambda x: x[:0]},
            "center": VECTOR,
            "teacher_index": {k: v for k, v in IDS.items() if k != "one axis"},
            "row_weights": VECTOR,
            "temp_student": WRONG_POSITIVE,
            "temp_target": WRONG_POSITIVE,
            "impl": WRONG_CHOICE,
        },
    ),
    "ema_update_": (
        ema,
        call_ema,
        {
            "targets": FLOAT | {"expanded": lambda x: x[:1].expand(3, 4)},
            "sources": FLOAT,
            "shadows": FLOAT
            | {"wide": lambda x: x.float(), "expanded": lambda x: x[:1].expand(3, 4)},
            "momentum": WRONG_SHARE,
            "impl": WRONG_CHOICE,
        },
    ),
    "update_center_": (
        lambda: {
            "center": torch.randn(5),
            "center_sum": torch.randn(5),
            "count": 3,
            "momentum": 0.9,
        },
        lambda a: update_center_(*a.values()),
        {
            "center": VECTOR,
            "center_sum": VECTOR,
            "count": [0, -3, float("nan"), torch.ones(2)],
            "momentum": WRONG_SHARE,
        },
    ),
    "attention": (
        lambda: {
            **{name: torch.randn(2, 2, 3, 4) for name in "qkv"},
            "backend": "auto",
        },
        lambda a: attention(*(a[name] for name in "qkv"), backend=a["backend"]),
        {name: FLOAT | {"bfloat16": lambda x: x.bfloat16()} for name in "qkv"}
        | {"backend": [*WRONG_CHOICE, "xformers"]},
    ),
    "philox4x32": (
        lambda: {
            "seed": torch.tensor(5),
            **{f"c{i}": torch.arange(3) for i in range(4)},
        },
        lambda a: philox4x32(*a.values()),
        {
            "seed": {k: v for k, v in SHAPES.items() if k in ("one axis more", "one axis")}
            | NOT_IDS
            | {"int32": lambda x: x.int()},
        }
        | {
            f"c{i}": {k: v for k, v in NOT_IDS.items() if k not in ("torch.int16", "torch.uint8")}
            | {"complex128": lambda x: x.to(torch.complex128)}
            for i in range(4)
        },
    ),
    "uniform": (
        lambda: {"bits": torch.arange(5)},
        lambda a: uniform(a["bits"]),
        {"bits": {k: v for k, v in NOT_IDS.items() if k not in ("torch.int16", "torch.uint8")}},
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_unspoiled_call_is_valid(name: str) -> None:
    make, call, _ = CALLS[name]
    call(make())


@pytest.mark.parametrize(
    ("name", "argument", "way"),
    [
        (name, argument, way)
        for name, (_, _, spoils) in CALLS.items()
        for argument, ways in spoils.items()
        for way in ways
    ],
    ids=str,
)
def test_a_spoiled_argument_is_named(name: str, argument: str, way: Any) -> None:
    make, call, spoils = CALLS[name]
    arguments = make()
    ways = spoils[argument]
    arguments[argument] = ways[way](arguments[argument]) if isinstance(ways, dict) else way
    names = "|".join([*arguments, "q, k, v"])
    with pytest.raises((ValueError, TypeError), match=rf"^({names})(\[\d+\])?: "):
        call(arguments)
