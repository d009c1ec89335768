"""What holds of every op wherever it runs: it repeats, takes any strides, learns and compiles."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sjepa_kernels._library import Op
from sjepa_kernels._triton import INTERPRETED
from tests.kernels.cases import Place, compiles, gradients, listed
from tests.kernels.fuzzing import laid_out
from tests.kernels.op_case import MakeUse, all_uses

everywhere = pytest.mark.parametrize(("where", "make"), all_uses(of_torch=True))
where_it_learns = pytest.mark.parametrize(("where", "make"), all_uses(of_torch=True, learning=True))


def row_of(y: Tensor) -> Tensor:
    """Whole numbers for the last axis of an output."""
    row = y.shape[-1:]
    return torch.arange(3, 3 + row.numel()).to(y).view(row)


@everywhere
def test_repeats_bitwise_for_any_number_of_threads(where: Place, make: MakeUse) -> None:
    use = make(where, torch.float32, INTERPRETED)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4, 1) if where.impl == "cpu" else (before, before):
            torch.set_num_threads(threads)
            runs.append(use.outcome())
    finally:
        torch.set_num_threads(before)
    for first, *others in zip(*runs, strict=True):
        assert all(torch.equal(first, other) for other in others)


@everywhere
@pytest.mark.parametrize("layout", ["turned", "sliced"])
def test_strided_inputs_and_expanded_gradients(where: Place, make: MakeUse, layout: str) -> None:
    use = make(where, torch.float64, True)
    if layout == "turned" and all(x.ndim < 2 for x in use.inputs):
        pytest.skip("a single axis cannot be turned")
    apart = [laid_out(x.detach(), layout).requires_grad_(x.requires_grad) for x in use.inputs]
    assert not all(x.is_contiguous() for x in apart)
    ours, plain = (listed(use.call(*inputs)) for inputs in (apart, use.inputs))
    assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    used = [[y for y in outputs if y.requires_grad] for outputs in (ours, plain)]
    grads = [row_of(y).expand(y.shape) for y in used[1]]
    got = gradients(used[0], apart, grads)
    expected = gradients(used[1], use.inputs, [g.contiguous() for g in grads])
    assert_close(got, expected, rtol=1e-12, atol=1e-12)


@where_it_learns
def test_every_subset_of_gradients(where: Place, make: MakeUse) -> None:
    use = make(where, torch.float64, True)
    leaves = [k for k, x in enumerate(use.inputs) if x.requires_grad]
    full = use.outcome()
    outputs = len(full) - len(leaves)
    for wanted in itertools.product([False, True], repeat=len(leaves)):
        chosen = [k for k, w in zip(leaves, wanted, strict=True) if w]
        some = [x.detach().requires_grad_(k in chosen) for k, x in enumerate(use.inputs)]
        found = use.outcome(some)
        assert found[0].requires_grad == any(wanted)
        expected = full[:outputs] + [full[outputs + leaves.index(k)] for k in chosen]
        assert_close(found, expected, rtol=1e-12, atol=1e-12)


@where_it_learns
def test_gradcheck(where: Place, make: MakeUse) -> None:
    use = make(where, torch.float64, True)
    if use.inputs[0].dtype != torch.float64:
        pytest.skip("its code is for another dtype")
    learn = [k for k, y in enumerate(listed(use.call(*use.inputs))) if y.requires_grad]

    def learned(*inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = listed(use.call(*inputs))
        return tuple(outputs[k] for k in learn)

    # Interpreted, along random directions: a number at a time takes minutes.
    assert torch.autograd.gradcheck(learned, use.inputs, fast_mode=INTERPRETED)


@where_it_learns
def test_backward_twice_through_a_kept_graph(where: Place, make: MakeUse) -> None:
    """What the first wrote is the caller's, who may change it."""
    use = make(where, torch.float32, True)
    outputs = [y for y in listed(use.call(*use.inputs)) if y.requires_grad]
    once = [row_of(y).expand(y.shape) for y in outputs]
    torch.autograd.backward(outputs, once, retain_graph=True)
    grads = [x.grad for x in use.inputs if x.grad is not None]
    expected = [9 * x for x in grads]
    for x in grads:
        x.mul_(7)
    torch.autograd.backward(outputs, [2 * x for x in once])
    assert_close(grads, expected)


@everywhere
def test_what_is_fixed_gets_no_gradient(where: Place, make: MakeUse) -> None:
    use = make(where, torch.float32, True)
    fixed = [x.is_floating_point() and not x.requires_grad for x in use.inputs]
    if not any(fixed):
        pytest.skip("it learns from all of its numbers, or has none")
    inputs = [x.detach().requires_grad_(f) for x, f in zip(use.inputs, fixed, strict=True)]
    assert not any(y.requires_grad for y in listed(use.call(*inputs)))


@compiles
@everywhere
def test_compiled_values_equal_eager_for_other_numbers_too(where: Place, make: MakeUse) -> None:
    """As a part of what is compiled; numbers are no constants of it."""
    torch.compiler.reset()
    uses = [make(where, torch.float32, True) for _ in range(2)]
    call = uses[0].call

    def step(*inputs: Tensor) -> list[Tensor]:
        found = call(*(x / 2 if x.is_floating_point() else x for x in inputs))
        return [y * 3 for y in listed(found)]

    compiled, firsts = torch.compile(step, fullgraph=True), []
    for use in uses:
        ours, eager = compiled(*use.inputs), step(*use.inputs)
        assert [y.requires_grad for y in ours] == [y.requires_grad for y in eager]
        for found in (ours, eager):
            used = [y for y in found if y.requires_grad]
            found += gradients(used, use.inputs, [torch.ones_like(y) for y in used])
        for mine, plain in zip(ours, eager, strict=True):
            budget: dict[str, float] = {}
            if mine.dtype not in (torch.float32, torch.float64):
                # The compiler may round PyTorch's own half-precision steps elsewhere, never ours.
                half = mine.is_floating_point() and where.impl == "torch"
                budget = {"rtol": torch.finfo(mine.dtype).eps if half else 0.0, "atol": 0.0}
            elif where.impl == "torch" and ours[0].dtype == torch.half:
                # So may it in between, where parameters are float32, and their gradients with them.
                budget = {"rtol": torch.finfo(torch.half).eps, "atol": 1e-5}
            assert_close(mine, plain, **budget)
        firsts.append(ours[0])
    assert not torch.equal(*firsts)


@pytest.mark.parametrize(("where", "make"), all_uses(of_torch=False))
def test_opcheck(where: Place, make: MakeUse, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all that is called where all, one or none of the inputs learn, in both directions."""
    use = make(where, torch.float32, True)
    calls: list[tuple[Any, tuple[Any, ...]]] = []

    def record(op: Op, *args: Any) -> Any:
        # In a backward, what the forward took is no leaf of the call.
        plain = torch.is_grad_enabled()
        given = [x.detach() if isinstance(x, Tensor) and not plain else x for x in args]
        calls.append((op.registered, tuple(given)))
        return op.registered(*args)

    monkeypatch.setattr(Op, "__call__", record)
    for most in (len(use.inputs), 1, 0):
        learn = [x.requires_grad and k < most for k, x in enumerate(use.inputs)]
        some = [x.detach().requires_grad_(w) for x, w in zip(use.inputs, learn, strict=True)]
        outputs = [y for y in listed(use.call(*some)) if y.requires_grad]
        gradients(outputs, some, [row_of(y).expand(y.shape) for y in outputs])
    monkeypatch.undo()
    if not calls and where.impl == "cpu":
        pytest.skip("its C++ is not registered")
    assert calls
    # Once for calls that differ in nothing but numbers.
    unlike = {(op, *map(_kind, args)): (op, args) for op, args in calls}
    for op, args in unlike.values():
        torch.library.opcheck(op, args)


def _kind(arg: Any) -> object:
    if isinstance(arg, Tensor):
        return arg.shape, arg.stride(), arg.dtype, arg.requires_grad
    return tuple(map(_kind, arg)) if isinstance(arg, list | tuple) else arg
