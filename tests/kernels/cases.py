"""What the kernel tests share: where ops run here, and how close they must come to float64."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from _pytest.mark import ParameterSet
from torch import Tensor

from sjepa_kernels._triton import INTERPRETED
from sjepa_kernels.native import LIBRARY

Outputs = Tensor | Sequence[Tensor]

# What `make test-all` asks for: the cases that are too slow for `make test`.
ALL_CASES = "SJEPA_ALL_CASES" in os.environ

# Added to twice eager's error, relative to the size of the truth.
SLACK = {
    torch.float64: 1e-14,
    torch.float32: 5e-7,
    torch.float16: 1e-5,
    # The interpreter cuts float32 down to bfloat16 where hardware rounds: up to one unit more.
    torch.bfloat16: 8e-3 if INTERPRETED else 1e-5,
}

# Inductor imports a module of torch that torch itself deprecates.
compiles = pytest.mark.filterwarnings("ignore:.torch.jit.script_method.:DeprecationWarning")


@dataclass(frozen=True)
class Place:
    """A device and an implementation."""

    device: str
    impl: str

    def __str__(self) -> str:
        return f"{self.device}-{self.impl}"

    @property
    def missing(self) -> str:
        """Why it cannot run here, or an empty string."""
        if self.impl == "cpu" and LIBRARY is None:
            return "the C++ library is not built"
        return ""


def places(has_cpp: bool) -> list[Place]:
    """Return the kernels alone under the interpreter, otherwise all that this machine has.

    Args:
        has_cpp: Whether the op has C++ code; where it has none, "cpu" means the reference.

    Returns:
        Where to run it.
    """
    if INTERPRETED:
        return [Place("cpu", "triton")]
    found = [Place("cpu", "torch"), *[Place("cpu", "cpu")] * has_cpp]
    if torch.cuda.is_available():
        found += [Place("cuda", "torch"), Place("cuda", "triton")]
    return found


def at(place: Place, *values: object, name: str) -> ParameterSet:
    """Return the place and more as values for a test, which is skipped where it cannot run."""
    missing = pytest.mark.skipif(bool(place.missing), reason=place.missing or "it can run")
    return pytest.param(place, *values, id=f"{place}-{name}", marks=missing)


def assert_within_budget(
    ours: Tensor, eager: Tensor, truth: Tensor, what: str, extra: float = 0.0
) -> None:
    """Demand |ours - truth| <= 2 |eager - truth| + (slack + extra) |truth|, in Euclidean norm."""
    assert ours.dtype == eager.dtype, what
    assert ours.shape == truth.shape, what
    slack = SLACK[ours.dtype] + extra
    ours, eager, truth = (x.detach().double().cpu() for x in (ours, eager, truth))
    assert torch.isfinite(ours).all(), f"{what} holds NaN or infinity"
    allowed = 2 * (eager - truth).norm() + slack * truth.norm() + 1e-30
    error = (ours - truth).norm()
    assert error <= allowed, f"{what}: error {error:.3e} exceeds {allowed:.3e}"


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor without memory, for a launch that is recorded and never run."""
    return torch.empty(shape, dtype=dtype, device="meta")


def assert_learns_within_budget(
    ours: Outputs,
    eager: Outputs,
    truth: Outputs,
    leaves: Sequence[Tensor],
    exact: Sequence[Tensor],
    extra: float = 0.0,
) -> None:
    """Demand it of what op and eager made of the leaves, `exact` in float64, and of gradients."""
    found = [listed(outputs) for outputs in (ours, eager, truth)]
    learning = [k for k, y in enumerate(found[2]) if y.requires_grad]
    # Of a loss 1: a gradient that is rounded before it is scaled would be rounded again.
    shapes = [found[0][k].shape for k in learning]
    grads = [torch.randn(shape) if shape else torch.ones(()) for shape in shapes]
    for outputs, inputs in zip(found, (leaves, leaves, exact), strict=True):
        used = [outputs[k] for k in learning]
        outputs += gradients(used, inputs, [g.to(y) for g, y in zip(grads, used, strict=True)])
    for k, (mine, plain, true) in enumerate(zip(*found, strict=True)):
        assert_within_budget(mine, plain, true, f"output or gradient {k}", extra)


def in_float64(leaves: Sequence[Tensor]) -> list[Tensor]:
    """Return the same numbers as leaves of their own, which learn where the first do."""
    return [x.detach().double().requires_grad_(x.requires_grad) for x in leaves]


def leaves_of(
    place: Place, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Return normal numbers of these shapes that require gradients."""
    made = [torch.randn(shape).to(place.device, dtype) for shape in shapes]
    return [x.requires_grad_() for x in made]


def listed(outputs: Outputs) -> list[Tensor]:
    """Return a list of one output or of all."""
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def with_gradients(outputs: Outputs, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the outputs, and the inputs' gradients for some gradient of each output."""
    found = listed(outputs)
    learning = [y for y in found if y.requires_grad]
    return [*found, *gradients(learning, inputs, [y.detach().cos() for y in learning])]


def gradients(outputs: Outputs, inputs: Sequence[Tensor], grads: Outputs) -> list[Tensor]:
    """Return the gradient of each input that requires one, in order."""
    wanted = [x for x in inputs if x.requires_grad]
    if not wanted:
        return []
    return list(torch.autograd.grad(listed(outputs), wanted, listed(grads), materialize_grads=True))
