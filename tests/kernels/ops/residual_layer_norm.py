"""An addition and a LayerNorm of the sum, both returned."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.nn.functional import layer_norm

from sjepa_kernels import residual_layer_norm
from tests.kernels.cases import Place, leaves_of, meta
from tests.kernels.fuzzing import FLOATS, HALVES, Draw, assert_norms_close, spread_of
from tests.kernels.op_case import Arguments, Fuzz, Launch, OpCase, Use, normals
from tests.kernels.spoils import FLOAT, VECTOR, WRONG_CHOICE, WRONG_EPS


def arguments() -> Arguments:
    made = normals(x=(2, 3), residual=(2, 3), weight=(3,), bias=(3,))
    return made | {"eps": 1e-5, "impl": "auto"}


def use(place: Place, dtype: torch.dtype, small: bool) -> Use:
    shape = (2, 3, 5) if small else (50, 70)
    leaves = leaves_of(place, shape, shape, shape[-1:], shape[-1:], dtype=dtype)
    return Use(partial(residual_layer_norm, impl=place.impl), leaves)


def launch(rows: int, width: int, dtype: torch.dtype) -> Launch:
    def run(module: Any) -> None:
        x, weight = meta(rows, width, dtype=dtype), meta(width)
        y, total, mean, rstd = module._forward(x, x, weight, weight, 1e-5)
        for needs_affine in (True, False):
            module._gradients(y, total, total, mean, rstd, weight, needs_affine)

    return "blocks.residual_norm", run


def random_call(draw: Draw) -> None:
    """Any leading axes, branch, stream and parameters of different dtypes, any that learn."""
    lead = tuple(draw.size() for _ in range(draw.size(0, 3)))
    width = draw.one_of(1, 2, 5, 16, 33, 130)
    shapes = [(*lead, width), (*lead, width), (width,), (width,)]
    # The interpreter casts float64 to bfloat16 wrongly, so no call has both.
    dtypes = draw.one_of([d for d in FLOATS if d != torch.bfloat16], [torch.float32, *HALVES])
    leaves = [draw.normal(shape, draw.one_of(*dtypes)) for shape in shapes]
    leaves = [x.requires_grad_(draw.one_of(False, True)) for x in leaves]
    exact = [x.detach().double().requires_grad_(x.requires_grad) for x in leaves]
    ours = residual_layer_norm(*leaves, impl=draw.impl)
    total = exact[0] + exact[1]
    truth = layer_norm(total, (width,), exact[2], exact[3]), total
    assert ours[0].dtype == leaves[0].dtype and ours[1].dtype == leaves[1].dtype
    eps, spread = max(torch.finfo(x.dtype).eps for x in leaves), spread_of(total.detach(), -1)
    assert_norms_close(list(ours), list(truth), eps, spread)
    # The sum knows nothing of the parameters.
    learning = [k for k, y in enumerate(truth) if y.requires_grad]
    if learning:
        grads = [draw.normal(shapes[0], ours[k].dtype) for k in learning]
        got, true = (
            torch.autograd.grad(
                [outputs[k] for k in learning],
                [x for x in inputs if x.requires_grad],
                [g.to(outputs[k].dtype) for g, k in zip(grads, learning, strict=True)],
                materialize_grads=True,
            )
            for outputs, inputs in ((ours, leaves), (truth, exact))
        )
        assert_norms_close(list(got), list(true), eps, 4 * spread**2 * width)


CASE = OpCase(
    op=residual_layer_norm,
    tests=["test_residual_norm.py", "test_modules_blocks.py"],
    arguments=arguments,
    says=[
        ({"x": torch.zeros(())}, r"x: \(\); expected"),
        ({"x": torch.zeros(2, 3).int()}, "x: torch.int32"),
        ({"residual": torch.zeros(3)}, r"residual: \(3,\); expected x.shape = \(2, 3"),
        ({"weight": torch.zeros(2)}, r"weight: \(2,\); expected \(D,\) = \(3,\)"),
        ({"bias": torch.zeros(3).long()}, "bias: torch.int64"),
        ({"bias": torch.zeros(3, device="meta")}, "bias: meta; move it to cpu"),
    ],
    spoils={
        "x": FLOAT,
        "residual": FLOAT,
        "weight": VECTOR,
        "bias": VECTOR,
        "eps": WRONG_EPS,
        "impl": WRONG_CHOICE,
    },
    uses=[use],
    launches={
        f"residual_norm-{width}-{str(dtype)[6:]}{'-odd' * (width % 16 > 0)}": launch(
            77 if width == 100 else 192000, width, dtype
        )
        for width in (128, 256, 512, 1024, 4096, 100)
        for dtype in (torch.bfloat16, torch.float32)
    },
    fuzz=Fuzz(random_call),
)
