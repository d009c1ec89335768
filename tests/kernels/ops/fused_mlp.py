"""The MLP half of a block, with its LayerNorm and its residual addition."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.nn.functional import gelu, layer_norm, linear

from sjepa_kernels import fused_mlp
from tests.kernels.cases import Place, gradients, leaves_of, meta
from tests.kernels.fuzzing import FLOATS, Draw, assert_norms_close, spread_of
from tests.kernels.op_case import Arguments, Fuzz, Launch, OpCase, Use, normals
from tests.kernels.spoils import FLOAT, VECTOR, WRONG_CHOICE, WRONG_EPS, without

HALF, FULL = torch.bfloat16, torch.float32


def shapes(width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    return {
        "norm_weight": (width,),
        "norm_bias": (width,),
        "w1": (hidden, width),
        "b1": (hidden,),
        "w2": (width, hidden),
        "b2": (width,),
    }


def arguments() -> Arguments:
    return normals(x=(2, 3), **shapes(3, 5)) | {"eps": 1e-5, "impl": "auto"}


def use(place: Place, dtype: torch.dtype, small: bool) -> Use:
    shape, hidden = ((2, 2, 4), 5) if small else ((150, 20), 37)
    leaves = leaves_of(place, shape, *shapes(shape[-1], hidden).values(), dtype=dtype)
    return Use(partial(fused_mlp, impl=place.impl), leaves)


def launch(rows: int, width: int, dtype: torch.dtype, dot: torch.dtype) -> Launch:
    """Forward and backward, which ends with a launch of `residual_norm` that has its own cases."""

    def run(module: Any) -> None:
        x = meta(rows, width, dtype=dtype)
        parameters = [meta(*shape) for shape in shapes(width, 4 * width).values()]
        module._forward(x, *parameters, 1e-5, dot)
        weights = [p.to(dot) for p in parameters[2:5]]
        module._chunks(x, x, (*parameters[:2], 1e-5), weights, torch.float32, True)

    return "blocks.fused_mlp", run


# Rows are few: the backward repeats one launch for each chunk of them.
LAUNCHES = {
    f"fused_mlp-{width}-{str(dtype)[6:]}{'-odd' * (width % 16 > 0)}": launch(
        77 if width == 100 else 1920, width, dtype, dtype
    )
    for width in (128, 256, 512, 100)
    for dtype in (HALF, FULL)
} | {f"fused_mlp-{width}-autocast": launch(1920, width, FULL, HALF) for width in (256, 512)}


def random_call(draw: Draw) -> None:
    """Any leading axes, also none, no hidden units, parameters of different dtypes."""
    lead = tuple(draw.size() for _ in range(draw.size(0, 2)))
    width, hidden = draw.one_of(2, 5, 16, 33), draw.one_of(0, 1, 5, 16, 40)
    dtype = draw.one_of(*FLOATS)
    leaves = [draw.normal((*lead, width), dtype)]
    for shape in shapes(width, hidden).values():
        leaves.append(draw.normal(shape, draw.one_of(dtype, torch.float32)))
    leaves = [x.requires_grad_() for x in leaves]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    x, weight, bias, w1, b1, w2, b2 = exact
    truth = x + linear(gelu(linear(layer_norm(x, (width,), weight, bias), w1, b1)), w2, b2)
    out = fused_mlp(*leaves, impl=draw.impl)
    assert out.dtype == dtype
    # Parameters are rounded to the products' dtype; sums have as many terms as rows or units.
    eps = max(torch.finfo(leaf.dtype).eps for leaf in leaves)
    spread = spread_of(x.detach(), -1) * (width + hidden)
    assert_norms_close([out], [truth], eps, spread)
    grad = draw.normal(tuple(out.shape), dtype)
    got, true = gradients(out, leaves, grad), gradients(truth, exact, grad.double())
    assert_norms_close(got, true, eps, spread**2)


CASE = OpCase(
    op=fused_mlp,
    tests=["test_fused_mlp.py", "test_modules_blocks.py"],
    arguments=arguments,
    says=[
        ({"x": torch.zeros(())}, r"x: \(\); expected"),
        ({"x": torch.zeros(2, 0)}, r"x: \(2, 0\); .*at least 1"),
        ({"x": torch.zeros(2, 3).int()}, "x: torch.int32"),
        ({"norm_weight": torch.zeros(2)}, r"norm_weight: \(2,\); expected \(D,\)"),
        ({"norm_bias": torch.zeros(3).int()}, "norm_bias: torch.int32"),
        ({"w1": torch.zeros(3)}, r"w1: \(3,\); expected \(H, D\)"),
        ({"w1": torch.zeros(5, 4)}, r"w1: \(5, 4\); expected \(H, D\) = \(5, 3\)"),
        ({"b1": torch.zeros(3)}, r"b1: \(3,\); expected \(H,\) = \(5,\)"),
        ({"w2": torch.zeros(5, 3)}, r"w2: \(5, 3\); expected \(D, H\) = \(3, 5\)"),
        ({"b2": torch.zeros(3, device="meta")}, "b2: meta; move it to cpu"),
    ],
    spoils={
        # More leading axes are as good; one axis of another length is not.
        "x": without(FLOAT, "one axis more") | {"no columns": lambda x: x[:, :0]},
        **dict.fromkeys(("w1", "w2"), FLOAT),
        **dict.fromkeys(("norm_weight", "norm_bias", "b1", "b2"), VECTOR),
        "eps": WRONG_EPS,
        "impl": WRONG_CHOICE,
    },
    uses=[use],
    launches=LAUNCHES,
    fuzz=Fuzz(random_call),
)
