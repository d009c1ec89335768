"""The MLP of a block behind its norm: two linear layers and the activation between."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.nn.functional import gelu, linear

from sjepa_kernels import gelu_mlp
from tests.kernels.cases import Place, gradients, leaves_of, meta
from tests.kernels.fuzzing import FLOATS, Draw, assert_norms_close
from tests.kernels.op_case import Arguments, Fuzz, Launch, OpCase, Use, normals
from tests.kernels.spoils import FLOAT, VECTOR, WRONG_CHOICE, without

HALF, FULL = torch.bfloat16, torch.float32


def shapes(width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    return {"w1": (hidden, width), "b1": (hidden,), "w2": (width, hidden), "b2": (width,)}


def arguments() -> Arguments:
    return normals(x=(2, 3), **shapes(3, 5)) | {"keep": True, "impl": "auto"}


def use(place: Place, dtype: torch.dtype, small: bool, *, keep: bool, half: bool) -> Use:
    """In half precision where the numbers are float32, so that the kernels do the products."""
    shape, hidden = ((2, 2, 4), 5) if small else ((150, 20), 70)
    leaves = leaves_of(place, shape, *shapes(shape[-1], hidden).values(), dtype=dtype)
    call = partial(gelu_mlp, keep=keep, impl=place.impl)
    if half and dtype == torch.float32:
        return Use(lambda x, *parameters: call(x.half(), *parameters), leaves)
    return Use(call, leaves)


def launch(rows: int, width: int, dtype: torch.dtype) -> Launch:
    """Forward, and backward with and without making the activation."""

    def run(module: Any) -> None:
        grad, hidden = (meta(rows, columns, dtype=dtype) for columns in (width, 4 * width))
        w2, b2 = meta(width, 4 * width, dtype=dtype), meta(width, dtype=dtype)
        if dtype == HALF and width <= 256:
            module._activated_product(hidden, w2, b2)
        for remake in (True, False):
            module._deactivate(grad, w2, hidden, remake)

    return "blocks.gelu_mlp", run


LAUNCHES = {
    f"gelu_mlp-{width}-{str(dtype)[6:]}{'-odd' * (width % 16 > 0)}": launch(
        77 if width == 100 else 192000, width, dtype
    )
    for width in (128, 256, 512, 100)
    for dtype in (HALF, FULL)
}


def random_call(draw: Draw) -> None:
    """Any leading axes, also none, no hidden units, parameters of different dtypes."""
    lead = tuple(draw.size() for _ in range(draw.size(0, 2)))
    width, hidden = draw.one_of(1, 2, 5, 16, 33), draw.one_of(0, 1, 5, 16, 70)
    dtype, keep = draw.one_of(*FLOATS), draw.flag()
    leaves = [draw.normal((*lead, width), dtype)]
    for shape in shapes(width, hidden).values():
        leaves.append(draw.normal(shape, draw.one_of(dtype, torch.float32)))
    leaves = [x.requires_grad_() for x in leaves]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    x, w1, b1, w2, b2 = exact
    truth = linear(gelu(linear(x, w1, b1)), w2, b2)
    out = gelu_mlp(*leaves, keep=keep, impl=draw.impl)
    assert out.dtype == dtype
    # Parameters are rounded to the products' dtype; sums have as many terms as rows or units.
    eps, spread = max(torch.finfo(leaf.dtype).eps for leaf in leaves), width + hidden
    assert_norms_close([out], [truth], eps, spread)
    grad = draw.normal(tuple(out.shape), dtype)
    got, true = gradients(out, leaves, grad), gradients(truth, exact, grad.double())
    assert_norms_close(got, true, eps, spread**2)


CASE = OpCase(
    op=gelu_mlp,
    tests=["test_gelu_mlp.py"],
    arguments=arguments,
    says=[
        ({"x": torch.zeros(())}, r"x: \(\); expected"),
        ({"x": torch.zeros(2, 0)}, r"x: \(2, 0\); .*at least 1"),
        ({"x": torch.zeros(2, 3).int()}, "x: torch.int32"),
        ({"w1": torch.zeros(3)}, r"w1: \(3,\); expected \(H, D\)"),
        ({"w1": torch.zeros(5, 4)}, r"w1: \(5, 4\); expected \(H, D\) = \(5, 3\)"),
        ({"b1": torch.zeros(3)}, r"b1: \(3,\); expected \(H,\) = \(5,\)"),
        ({"w2": torch.zeros(5, 3)}, r"w2: \(5, 3\); expected \(D, H\) = \(3, 5\)"),
        ({"b2": torch.zeros(3, device="meta")}, "b2: meta; move it to cpu"),
        ({"keep": "no"}, "keep: 'no'; pass True or False"),
    ],
    spoils={
        # More leading axes are as good; one axis of another length is not.
        "x": without(FLOAT, "one axis more") | {"no columns": lambda x: x[:, :0]},
        **dict.fromkeys(("w1", "w2"), FLOAT),
        **dict.fromkeys(("b1", "b2"), VECTOR),
        "keep": ["", None, 1],
        "impl": WRONG_CHOICE,
    },
    uses=[
        partial(use, keep=True, half=False),
        partial(use, keep=False, half=False),
        partial(use, keep=True, half=True),
        partial(use, keep=False, half=True),
    ],
    launches=LAUNCHES,
    fuzz=Fuzz(random_call),
)
