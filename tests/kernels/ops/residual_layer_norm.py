"""An addition and a LayerNorm of the sum, both returned."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from sjepa_kernels import residual_layer_norm
from tests.kernels.cases import Outputs, Place, leaves_of, meta
from tests.kernels.fuzzing import FLOATS, HALVES, Draw, assert_norms_close, spread_of
from tests.kernels.op_case import Arguments, Fuzz, Launch, OpCase, Use, normals
from tests.kernels.spoils import FLOAT, VECTOR, WRONG_CHOICE, WRONG_EPS, without

HALF = torch.bfloat16


def arguments() -> Arguments:
    made = normals(x=(2, 3), residual=(2, 3), weight=(3,), bias=(3,), added_bias=(3,))
    return made | {"dtype": torch.float32, "eps": 1e-5, "impl": "auto"}


def use(place: Place, dtype: torch.dtype, small: bool) -> Use:
    shape = (2, 3, 5) if small else (50, 70)
    leaves = leaves_of(place, shape, shape, shape[-1:], shape[-1:], dtype=dtype)
    return Use(partial(residual_layer_norm, impl=place.impl), leaves)


def use_bias(place: Place, dtype: torch.dtype, small: bool) -> Use:
    """The branch has a bias already."""
    shape = (2, 3, 5) if small else (50, 70)
    leaves = leaves_of(place, shape, shape, *[shape[-1:]] * 3, dtype=dtype)

    def call(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, added: Tensor) -> Outputs:
        x = x + added.detach()
        return residual_layer_norm(
            x, residual, weight, bias, added_bias_D=added, eps=1e-3, impl=place.impl
        )

    return Use(call, leaves)


def use_alone(place: Place, dtype: torch.dtype, small: bool) -> Use:
    """No stream to add; the sum goes on in an operation, and not as the input that it is."""
    shape = (2, 5) if small else (50, 70)
    leaves = leaves_of(place, shape, *[shape[-1:]] * 3, dtype=dtype)

    def call(x: Tensor, weight: Tensor, bias: Tensor, added: Tensor) -> Outputs:
        x = x + added.detach()
        y, total = residual_layer_norm(x, None, weight, bias, added_bias_D=added, impl=place.impl)
        return y, total * 2

    return Use(call, leaves)


def use_table(place: Place, dtype: torch.dtype, small: bool) -> Use:
    """One fixed table for all sequences."""
    shape = (2, 3, 5) if small else (5, 7, 70)
    *leaves, table = leaves_of(place, shape, *[shape[-1:]] * 2, shape[1:], dtype=dtype)
    table = table.detach()

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Outputs:
        return residual_layer_norm(x, table, weight, bias, impl=place.impl)

    return Use(call, leaves)


def launch(rows: int, width: int, x: torch.dtype, stream: torch.dtype, sums: int) -> Launch:
    """As in a block: the stream's gradient, and the branch's too if its dtype is another."""

    def run(module: Any) -> None:
        branch, residual = meta(rows, width, dtype=x), meta(rows, width, dtype=stream)
        weight = meta(width)
        y, total, mean, rstd = module._forward(branch, residual, weight, weight, None, x, 1e-5)
        also = None if x == stream else x
        for grad, count in ((total, sums), (None, 0)):
            module._gradients(y, grad, total, mean, rstd, weight, True, also, count)

    return "blocks.residual_norm", run


def launch_table(rows: int, width: int, tokens: int) -> Launch:
    """The embedding's sum with the positions of all tokens, and a norm with nothing to add."""

    def run(module: Any) -> None:
        x, table, weight = meta(rows, width, dtype=HALF), meta(tokens, width), meta(width)
        module._forward(x, table, weight, weight, None, HALF, 1e-5)
        module._forward(x, None, weight, weight, None, HALF, 1e-5)

    return "blocks.residual_norm", run


def random_call(draw: Draw) -> None:
    """Any leading axes, dtypes that differ, any that learn, with and without stream and bias."""
    lead = tuple(draw.size() for _ in range(draw.size(0, 3)))
    width = draw.one_of(1, 2, 5, 16, 33, 130)
    shape = (*lead, width)
    # The interpreter casts float64 to bfloat16 wrongly, so no call has both.
    dtypes = draw.one_of([d for d in FLOATS if d != torch.bfloat16], [torch.float32, *HALVES])

    def leaf(shape: tuple[int, ...]) -> Tensor:
        made = draw.normal(shape, draw.one_of(*dtypes))
        return made.requires_grad_(draw.one_of(False, True))

    stream = draw.one_of("whole", "whole", "table", "none")
    x, weight, bias = leaf(shape), leaf((width,)), leaf((width,))
    table = stream == "table" and len(shape) > 2
    residual = None if stream == "none" else leaf(shape[1:] if table else shape)
    added = leaf((width,)) if draw.flag() else None
    leaves = [p for p in (x, weight, bias, residual, added) if p is not None]
    exact = {id(p): p.detach().double().requires_grad_(p.requires_grad) for p in leaves}
    dtype = draw.one_of(None, *dtypes)
    ours = residual_layer_norm(
        x, residual, weight, bias, added_bias_D=added, dtype=dtype, impl=draw.impl
    )
    total = exact[id(x)]
    if added is not None:
        total = total + (exact[id(added)] - exact[id(added)].detach())
    if residual is not None:
        total = total + exact[id(residual)]
    truth = layer_norm(total, (width,), exact[id(weight)], exact[id(bias)]), total
    assert ours[0].dtype == (dtype or x.dtype)
    assert ours[1].dtype == (x if residual is None else residual).dtype
    eps = max(torch.finfo(p.dtype).eps for p in (*leaves, *ours))
    spread = spread_of(total.detach(), -1)
    assert_norms_close(list(ours), list(truth), eps, spread)
    # The sum knows nothing of the norm's parameters.
    learning = [k for k, y in enumerate(truth) if y.requires_grad]
    if learning:
        grads = [draw.normal(shape, ours[k].dtype) for k in learning]
        got, true = (
            torch.autograd.grad(
                [outputs[k] for k in learning],
                [p for p in inputs if p.requires_grad],
                [g.to(outputs[k].dtype) for g, k in zip(grads, learning, strict=True)],
                materialize_grads=True,
            )
            for outputs, inputs in ((ours, leaves), (truth, list(exact.values())))
        )
        assert_norms_close(list(got), list(true), eps, 4 * spread**2 * width)


CASE = OpCase(
    op=residual_layer_norm,
    tests=["test_residual_norm.py", "test_modules_blocks.py"],
    arguments=arguments,
    says=[
        ({"x": torch.zeros(())}, r"x: \(\); expected"),
        ({"x": torch.zeros(2, 0)}, r"x: \(2, 0\); .*D at least 1"),
        ({"x": torch.zeros(2, 3).int()}, "x: torch.int32"),
        ({"residual": torch.zeros(3)}, r"residual: \(3,\); expected x.shape = \(2, 3"),
        ({"weight": torch.zeros(2)}, r"weight: \(2,\); expected \(D,\) = \(3,\)"),
        ({"added_bias": torch.zeros(2)}, r"added_bias: \(2,\); expected \(D,\) = \(3,\)"),
        ({"x": torch.zeros(4, 2, 3), "residual": torch.zeros(3, 3)}, r"x.shape\[1:\] = \(2, 3"),
        ({"dtype": torch.int32}, "dtype: torch.int32; choose a floating-point"),
        ({"bias": torch.zeros(3).long()}, "bias: torch.int64"),
        ({"bias": torch.zeros(3, device="meta")}, "bias: meta; move it to cpu"),
    ],
    spoils={
        # The residual is then a table.
        "x": without(FLOAT, "one axis more"),
        "residual": FLOAT,
        "weight": VECTOR,
        "bias": VECTOR,
        "added_bias": VECTOR,
        "dtype": [torch.int64, torch.complex64, torch.float8_e4m3fn],
        "eps": WRONG_EPS,
        "impl": WRONG_CHOICE,
    },
    uses=[use, use_bias, use_alone, use_table],
    launches={
        f"residual_norm-{width}-{str(dtype)[6:]}{'-odd' * (width % 16 > 0)}": launch(
            77 if width == 100 else 192000, width, dtype, dtype, 2
        )
        for width in (128, 256, 512, 1024, 4096, 100)
        for dtype in (HALF, torch.float32)
    }
    | {
        "residual_norm-256-encoder": launch(192000, 256, HALF, torch.float32, 3),
        "residual_norm-256-predictor": launch(192000, 256, HALF, HALF, 3),
        "residual_norm-256-table": launch_table(192000, 256, 750),
    },
    fuzz=Fuzz(random_call),
)
