"""What the two fused losses share: their outputs, and the gradient that the forward computes."""

from typing import Any

from torch import Tensor

from sjepa_kernels._triton import compute_dtype, device_scalar

# A fused multiply-add would take a scaled number as it was before rounding, and subtract from it
# its row's maximum as it is behind: a row of one number would not have a loss of 0.
UNFUSED = {"enable_fp_fusion": False}
# The loss, the column sums of the teacher, and d loss / d student (empty where it is not needed).
Outputs = tuple[Tensor, Tensor, Tensor]


def empty_outputs(student: Tensor, needs_grad: bool) -> Outputs:
    """Return tensors of the right shapes and dtypes, not filled."""
    dtype = compute_dtype(student.dtype)
    grad = student.new_empty(student.shape if needs_grad else (0,))
    center_sum = student.new_empty(student.shape[-1], dtype=dtype)
    return student.new_empty((), dtype=dtype), center_sum, grad


def on_device(temps: tuple[float | Tensor, ...], student: Tensor) -> list[Tensor]:
    """Return the temperatures as tensors beside the student."""
    return [device_scalar(temp, student) for temp in temps]


def save_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep the gradient, the only one of the outputs that the backward reads."""
    _, center_sum, grad = output
    ctx.mark_non_differentiable(center_sum, grad)
    # Zeros for the outputs without a gradient would be as large as the student.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad)
