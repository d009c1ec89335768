"""How close an example and the plain form of what it replaces are to float64, in three precisions.

Each comparison prints a line of what it has seen (`pytest tests/examples -s`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

# Dtype, and the factor of the loss in training, which a `GradScaler` starts with in float16.
PRECISIONS = {
    "float32": (torch.float32, 1.0),
    "bfloat16": (torch.bfloat16, 1.0),
    "scaled float16": (torch.float16, 65536.0),
}
# Of relative errors: below it they are rounding of sums.
SLACK = 5e-7

Exact = tuple[Tensor, Sequence[Tensor]]


def assert_loss_as_exact(
    what: str,
    precision: str,
    ours: Callable[[list[Tensor]], Tensor],
    plain: Callable[[list[Tensor]], Tensor],
    leaves: list[Tensor],
) -> None:
    """Compare a loss of leaves, which have the dtype of the precision.

    The plain form gets half precision as float32, as autocast hands it to a softmax.
    """

    def as_autocast(values: list[Tensor]) -> Tensor:
        return plain([x.to(torch.promote_types(x.dtype, torch.float32)) for x in values])

    wide = [x.detach().double().requires_grad_() for x in leaves]
    exact = _loss_and_gradients(plain(wide), wide, 1.0)
    scale = PRECISIONS[precision][1]
    _compare(
        what,
        precision,
        exact,
        *(_loss_and_gradients(loss_of(leaves), leaves, scale) for loss_of in (ours, as_autocast)),
    )


def assert_model_as_exact(
    what: str,
    precision: str,
    model: nn.Module,
    ours: Callable[[nn.Module, list[Tensor]], Tensor],
    plain: Callable[[nn.Module, list[Tensor]], Tensor],
    inputs: list[Tensor],
) -> None:
    """Compare a loss of a float32 model under autocast; it takes the inputs in its own dtype."""
    wide = copy.deepcopy(model).double()
    loss = plain(wide, [x.double() for x in inputs])
    exact = _loss_and_gradients(loss, list(wide.parameters()), 1.0)
    dtype, scale = PRECISIONS[precision]
    found = []
    for loss_of in (ours, plain):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = loss_of(model, inputs)
        found.append(_loss_and_gradients(loss, list(model.parameters()), scale))
    _compare(what, precision, exact, *found)


def _loss_and_gradients(loss: Tensor, leaves: list[Tensor], scale: float) -> Exact:
    grads = torch.autograd.grad(loss * scale, leaves)
    return loss.detach().double(), [grad.double() / scale for grad in grads]


def _compare(what: str, precision: str, exact: Exact, ours: Exact, plain: Exact) -> None:
    """Fail where the example is more than twice as far from float64 as the plain form."""
    rows = []
    for loss, grads in (ours, plain):
        pairs = zip(grads, exact[1], strict=True)
        rows.append((_error(loss, exact[0]), max(_error(*pair) for pair in pairs)))
    (loss_error, grad_error), (plain_loss, plain_grad) = rows
    print(
        f"{what}, {precision}: loss off by {loss_error:.1e} (plain form {plain_loss:.1e}), "
        f"gradients by {grad_error:.1e} ({plain_grad:.1e})"
    )
    assert loss_error <= 2 * plain_loss + SLACK
    assert grad_error <= 2 * plain_grad + SLACK


def _error(value: Tensor, exact: Tensor) -> float:
    return float((value - exact).norm() / exact.norm())
