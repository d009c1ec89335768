"""What the files of the regularizers of features share."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.kernels.cases import Outputs, assert_within_budget, listed
from tests.kernels.fuzzing import FLOATS, Draw
from tests.kernels.op_case import Arguments
from tests.kernels.spoils import FLOAT, WRONG_CHOICE, Ways, without

NO_SAMPLES: Ways = without(FLOAT, "wider", "narrower") | {
    "no samples": lambda x: x[:, :0],
    "no views": lambda x: x[:0],
}
FEWER_THAN_TWO: Ways = NO_SAMPLES | {"one sample": lambda x: x[:, :1]}
IMPL: dict[str, Ways] = {"impl": WRONG_CHOICE}
SAYS: list[tuple[Arguments, str]] = [
    ({"features": torch.zeros(3)}, r"features: \(3,\); expected \(N, D\) or \(V, N, D\)"),
    ({"features": torch.zeros(0, 3)}, r"features: \(0, 3\); .*pass samples"),
    ({"features": torch.zeros(4, 3).int()}, "features: torch.int32"),
]


def drawn_features(draw: Draw, samples: int, width: int, spread: float, shift: float) -> Tensor:
    """Of one to three views, or without the axis of views, in some dtype and strides."""
    views, dtype = draw.size(1, 3), draw.one_of(*FLOATS)
    numbers = shift + spread * draw.normal((views, samples, width), torch.float64).detach()
    made: Tensor = draw.lay_out(numbers.to(dtype))
    return (made[0] if draw.flag() else made).detach().requires_grad_()


def assert_close_to(
    features: Tensor, ours: Outputs, eager: Outputs, truth: Outputs, exact: Tensor, slack: float
) -> None:
    """Each loss or term and its gradient, `slack` being what a rounding may cost either.

    With as few numbers as are drawn, eager's roundings may happen to cancel, so ours are allowed
    for, and the gradient is rounded to the features' dtype.
    """
    eps = torch.finfo(features.dtype).eps
    for k, (mine, plain, true) in enumerate(
        zip(listed(ours), listed(eager), listed(truth), strict=True)
    ):
        assert_within_budget(mine, plain, true, f"output {k}", slack)
        grads = [
            torch.autograd.grad(y, leaf, torch.full_like(y, 3.0), retain_graph=True)[0]
            for y, leaf in ((mine, features), (plain, features), (true, exact))
        ]
        assert_within_budget(*grads, f"gradient of output {k}", slack + eps)
