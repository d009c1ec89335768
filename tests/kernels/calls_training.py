"""Valid calls of the ops on tokens, losses, averages and blocks, and how each may be wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sjepa_kernels import (
    ContextualizedTargets,
    EmaPlan,
    accumulate_normalized_,
    attention,
    centered_crop_cross_entropy,
    centered_softmax_cross_entropy,
    ema_update_,
    fused_mlp,
    pack_tokens,
    residual_layer_norm,
    scatter_mask_tokens,
    self_attention,
    update_center_,
)
from tests.kernels.spoils import (
    FLOAT,
    IDS,
    INF,
    NAN,
    NOT_FLOATS,
    SHAPES,
    VECTOR,
    WRONG_CHOICE,
    WRONG_POSITIVE,
    WRONG_SHARE,
    Call,
    without,
)


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


def crops() -> dict[str, Any]:
    return {
        "student": torch.randn(4, 3, 6),
        "teacher": torch.randn(2, 3, 6),
        "center": torch.randn(6),
        "temp_student": 0.1,
        "temp_target": 0.06,
        "impl": "auto",
    }


def targets() -> dict[str, Any]:
    return {
        "total": torch.zeros(2, 3, 4),
        "hidden": torch.randn(2, 3, 4),
        "weight": 0.5,
        "norm": "layer",
        "impl": "auto",
    }


def norm() -> dict[str, Any]:
    return {
        "x": torch.randn(3, 4),
        "residual": torch.randn(3, 4),
        "weight": torch.randn(4),
        "bias": torch.randn(4),
        "eps": 1e-5,
        "impl": "auto",
    }


def mlp() -> dict[str, Any]:
    shapes = {"norm_weight": (4,), "norm_bias": (4,), "w1": (6, 4), "b1": (6,), "w2": (4, 6)}
    made = {name: torch.randn(shape) for name, shape in shapes.items()}
    return {"x": torch.randn(3, 4), **made, "b2": torch.randn(4), "eps": 1e-5, "impl": "auto"}


def call_with_options(function: Callable[..., object], *options: str) -> Callable[..., object]:
    """Pass these arguments by name, and the others by position."""

    def call(a: dict[str, Any]) -> object:
        by_name = {name: a[name] for name in options}
        return function(*(value for name, value in a.items() if name not in by_name), **by_name)

    return call


call_crops = call_with_options(centered_crop_cross_entropy, "temp_student", "temp_target", "impl")


def call_targets(a: dict[str, Any]) -> object:
    averaged = ContextualizedTargets(a["layers"], a["norm"], impl=a["impl"])
    for _ in range(a["layers"]):
        averaged.add_(a["hidden"])
    return averaged.finish(a["ids_mask"])


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
CALLS: dict[str, Call] = {
    "scatter_mask_tokens": (
        tokens,
        call_scatter,
        TOKENS | {"ids_keep": IDS | {"one twice": lambda x: x[:, [0, 1, 2, 1]]}},
    ),
    "pack_tokens": (
        tokens,
        call_pack,
        TOKENS | {"ids_mask": without(IDS, "wider", "narrower")},
    ),
    "centered_softmax_cross_entropy": (
        loss,
        call_loss,
        {
            "student": FLOAT | {"no rows": lambda x: x[:0], "no columns": lambda x: x[:, :0]},
            "teacher": FLOAT | {"no rows": lambda x: x[:0]},
            "center": VECTOR,
            "teacher_index": without(IDS, "one axis"),
            "row_weights": VECTOR,
            "temp_student": WRONG_POSITIVE,
            "temp_target": WRONG_POSITIVE,
            "impl": WRONG_CHOICE,
        },
    ),
    "centered_crop_cross_entropy": (
        crops,
        call_crops,
        {
            "student": without(FLOAT, "one axis more")
            | {"another axis": lambda x: x[None]}
            | {f"none along {k}": lambda x, k=k: x.narrow(k, 0, 0) for k in range(3)},
            "teacher": FLOAT | {"no crops": lambda x: x[:0]},
            "center": VECTOR,
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
            "center": VECTOR | {"expanded": lambda x: x[:1].expand(5)},
            "center_sum": VECTOR,
            "count": [0, -3, NAN, torch.tensor(0), torch.ones(2)],
            "momentum": WRONG_SHARE,
        },
    ),
    "attention": (
        lambda: {
            **{name: torch.randn(2, 2, 3, 4) for name in "qkv"},
            "impl": "auto",
        },
        lambda a: attention(*(a[name] for name in "qkv"), impl=a["impl"]),
        {name: FLOAT | {"bfloat16": lambda x: x.bfloat16()} for name in "qkv"}
        | {"impl": [*WRONG_CHOICE, "xformers"]},
    ),
    "self_attention": (
        lambda: {"qkv": torch.randn(2, 5, 3, 2, 4), "first": 1, "impl": "auto"},
        lambda a: self_attention(a["qkv"], first=a["first"], impl=a["impl"]),
        {
            "qkv": NOT_FLOATS
            | {"one axis less": lambda x: x[0], "two of three": lambda x: x[:, :, :2]},
            "first": [-1, 5],
            "impl": [*WRONG_CHOICE, "xformers"],
        },
    ),
    "accumulate_normalized_": (
        targets,
        call_with_options(accumulate_normalized_, "norm", "impl"),
        {
            "total": FLOAT
            | {
                "half": lambda x: x.half(),
                "expanded": lambda x: x[:1].expand(2, 3, 4),
                "a leaf": lambda x: x.requires_grad_(),
            },
            "hidden": FLOAT | {"float64": lambda x: x.double()},
            "weight": [NAN, INF, torch.tensor(NAN), torch.ones(2)],
            "norm": ["", "batch"],
            "impl": WRONG_CHOICE,
        },
    ),
    "ContextualizedTargets": (
        lambda: {
            "layers": 2,
            "hidden": torch.randn(2, 3, 4),
            "ids_mask": torch.tensor([[0, 2], [1, 0]]),
            "norm": "layer",
            "impl": "auto",
        },
        call_targets,
        {
            "layers": [0, -1],
            "hidden": {"one axis": SHAPES["one axis"], "no axes": SHAPES["no axes"]} | NOT_FLOATS,
            "ids_mask": without(IDS, "wider", "narrower"),
            "norm": ["", "batch"],
            "impl": WRONG_CHOICE,
        },
    ),
    "residual_layer_norm": (
        norm,
        call_with_options(residual_layer_norm, "eps", "impl"),
        {
            "x": FLOAT,
            "residual": FLOAT,
            "weight": VECTOR,
            "bias": VECTOR,
            "eps": [0.0, -1e-5, NAN, INF],
            "impl": WRONG_CHOICE,
        },
    ),
    "fused_mlp": (
        mlp,
        call_with_options(fused_mlp, "eps", "impl"),
        {
            # More leading axes are as good; one axis of another length is not.
            "x": without(FLOAT, "one axis more") | {"no columns": lambda x: x[:, :0]},
            **dict.fromkeys(("w1", "w2"), FLOAT),
            **dict.fromkeys(("norm_weight", "norm_bias", "b1", "b2"), VECTOR),
            "eps": [0.0, -1e-5, NAN, INF],
            "impl": WRONG_CHOICE,
        },
    ),
}
