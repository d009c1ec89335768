"""`FusedAdamWEma` beside `torch.optim.AdamW`, a moving average and a cast, over several steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sjepa_kernels import FusedAdamWEma
from tests.kernels.cases import Place, assert_within_budget

HAS_CPP = True
# A matrix, a scalar, an empty tensor, a span and a bit, a transposed matrix.
SHAPES = [(3, 5), (), (0,), (4099,), (6, 8)]
MOMENTUM = 0.9
Weights = list[nn.Parameter]


def weights(dtype: torch.dtype, device: str) -> Weights:
    made = [torch.randn(shape).to(device, dtype) for shape in SHAPES]
    made[4] = made[4].t()
    return [nn.Parameter(x) for x in made]


def copies(params: Weights, dtype: torch.dtype) -> Weights:
    return [nn.Parameter(p.detach().to(dtype, copy=True)) for p in params]


def groups(params: Weights, lr: Any = 0.01) -> list[dict[str, Any]]:
    second = {"params": params[3:], "lr": 2 * lr, "weight_decay": 0.0, "betas": (0.8, 0.9)}
    return [{"params": params[:3], "weight_decay": 0.1, "lr": lr}, second]


def gradients(params: Weights, steps: int, seed: int = 0) -> Iterator[list[Tensor]]:
    torch.manual_seed(seed)
    for _ in range(steps):
        yield [torch.randn(p.shape).to(p.device, p.dtype) for p in params]


def give(params: Weights, grads: list[Tensor]) -> None:
    """In the order of the weights: PyTorch's fused AdamW takes no other on a CPU."""
    for p, g in zip(params, grads, strict=True):
        p.grad = torch.empty_like(p).copy_(g)


Run = Callable[[list[Tensor]], list[Tensor]]


def plain(params: Weights, dtype: torch.dtype, **options: Any) -> Run:
    """PyTorch's own, in a dtype; the targets begin as the weights."""
    own = copies(params, dtype)
    targets = [p.detach().clone() for p in own]
    optimizer = torch.optim.AdamW(groups(own), **options)

    def step(grads: list[Tensor]) -> list[Tensor]:
        give(own, grads)
        optimizer.step()
        torch._foreach_lerp_(targets, [p.detach() for p in own], 1 - MOMENTUM)
        moments = [optimizer.state[p][x] for x in ("exp_avg", "exp_avg_sq") for p in own]
        return [*own, *targets, *moments]

    return step


def fused(params: Weights, impl: str, half: torch.dtype) -> tuple[Run, list[Tensor], FusedAdamWEma]:
    targets = [p.detach().clone() for p in params]
    halves = [torch.empty_like(p, dtype=half).detach() for p in (*params, *targets)]
    optimizer = FusedAdamWEma(
        groups(params), targets=targets, shadows=halves[:5], target_shadows=halves[5:], impl=impl
    )

    def step(grads: list[Tensor]) -> list[Tensor]:
        for p, g in zip(params, grads, strict=True):
            # In another order than the transposed weight.
            p.grad = g.clone()
        optimizer.step(momentum=MOMENTUM)
        moments = [optimizer.state[p][x] for x in ("exp_avg", "exp_avg_sq") for p in params]
        return [*params, *targets, *moments]

    return step, halves, optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("eager", ["fused", "foreach"])
def test_several_steps(place: Place, dtype: torch.dtype, eager: str) -> None:
    params = weights(dtype, place.device)
    theirs, exact = plain(params, dtype, **{eager: True}), plain(params, torch.float64)
    half = torch.float16 if dtype == torch.float64 else torch.bfloat16
    ours, halves, optimizer = fused(params, place.impl, half)
    for grads in gradients(params, 6):
        found = ours(grads), theirs(grads), exact(grads)
    for k, row in enumerate(zip(*found, strict=True)):
        assert_within_budget(*row, f"tensor {k}")
    for k, (half_copy, original) in enumerate(zip(halves, found[0], strict=False)):
        assert_within_budget(half_copy, original.to(half), original, f"copy {k}")
    assert all(optimizer.state[p]["step"] == 6 for p in params)


def sizes(grads: list[Tensor]) -> list[float]:
    return [float(g.double().norm()) for g in grads]


def fused_on_a_gpu(terms: float, truth: Tensor) -> float:
    """What PyTorch's own steps, fused on a GPU, may add to a first moment, over its size.

    They have 1 - beta1 in float32, 2.4e-7 off, and the terms that it weighs may cancel: seen were
    6.0e-8 of a number of 0.058 from numbers of up to 2, in just this order of roundings.
    """
    return 2.4e-7 * terms / float(truth.norm().clamp_min(1e-30))


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {}], ids=str)
@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_state_goes_both_ways(place: Place, first: str, options: dict[str, Any]) -> None:
    """A run that the other optimiser goes on with ends with the weights of one that does not."""
    params = weights(torch.float32, place.device)
    whole, exact = plain(params, torch.float32, **options), plain(params, torch.float64)
    pair = [
        FusedAdamWEma(groups(params), impl=place.impl),
        torch.optim.AdamW(groups(params), **options),
    ]
    before, after = pair if first == "ours" else reversed(pair)
    largest = [max(norms) for norms in zip(*map(sizes, gradients(params, 6)), strict=True)]
    for k, grads in enumerate(gradients(params, 6)):
        expected, truth = whole(grads), exact(grads)
        give(params, grads)
        if k == 3:
            after.load_state_dict(copy.deepcopy(before.state_dict()))
        (before if k < 3 else after).step()
    state = after.state_dict()["state"]
    moments = [state[k][name] for name in ("exp_avg", "exp_avg_sq") for k in range(5)]
    found = [*params, *moments]
    for k, (ours, eager, true) in enumerate(
        zip(found, expected[:5] + expected[10:], truth[:5] + truth[10:], strict=True)
    ):
        extra = 0.0
        if first == "ours" and place.device == "cuda" and 5 <= k < 10:
            extra = fused_on_a_gpu(largest[k - 5], true)
        assert_within_budget(ours, eager, true, f"tensor {k}", extra)
    assert all(one["step"] == 6 for one in state.values())
    if first == "ours":
        assert after.param_groups[0]["fused"]
    else:
        assert all(s["step"].device == p.device for p, s in after.state.items())


def test_rates_on_the_device_and_a_clipped_step(place: Place) -> None:
    """A schedule of the rate is followed, and a factor on the gradients equals scaled gradients."""
    params = weights(torch.float32, place.device)
    others = copies(params, torch.float32)
    rate = torch.tensor(0.01, device=place.device)
    ours = FusedAdamWEma(params, lr=rate, impl=place.impl)
    theirs = torch.optim.AdamW(others, lr=0.01)
    for k, grads in enumerate(gradients(params, 4)):
        rate.fill_(0.01 * (k + 1))
        theirs.param_groups[0]["lr"] = 0.01 * (k + 1)
        give(params, grads)
        give(others, [0.25 * g for g in grads])
        ours.step(clip=torch.tensor(0.25, device=place.device))
        theirs.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(params, grads, strict=True))
    torch.testing.assert_close([p.data for p in params], [p.data for p in others])


def test_a_weight_without_gradient_is_left_out(place: Place) -> None:
    params = weights(torch.float32, place.device)
    targets = [None, torch.zeros((), device=place.device), None, None, None]
    optimizer = FusedAdamWEma(params, lr=0.1, targets=targets, impl=place.impl)
    before = [p.detach().clone() for p in params]
    params[3].grad = torch.ones_like(params[3])
    optimizer.step(momentum=0.5)
    changed = [not torch.equal(p, old) for p, old in zip(params, before, strict=True)]
    assert changed == [False, False, False, True, False]
    assert set(optimizer.state) == {params[3]}
    torch.testing.assert_close(targets[1], 0.5 * params[1].detach())


def test_the_gradient_of_a_copy_is_that_of_its_weight(place: Place) -> None:
    param = nn.Parameter(torch.randn(3, 5, device=place.device))
    half = nn.Parameter(param.detach().half())
    other = nn.Parameter(param.detach().clone())
    optimizer = FusedAdamWEma([param], shadows=[half], lr=0.1, impl=place.impl)
    theirs = torch.optim.AdamW([other], lr=0.1)
    for _ in range(3):
        half.grad = torch.randn(3, 5).to(place.device).half()
        other.grad = half.grad.float()
        optimizer.step()
        theirs.step()
    torch.testing.assert_close(param.data, other.data)
    torch.testing.assert_close(half.data, param.data.half(), rtol=1e-3, atol=0.0)
    param.grad = torch.ones_like(param)
    with pytest.raises(ValueError, match=r"shadows\[0\].grad: a gradient beside params\[0\].grad"):
        optimizer.step()


def test_autograd_sees_that_weights_changed(place: Place) -> None:
    param = nn.Parameter(torch.ones(3, device=place.device))
    optimizer = FusedAdamWEma([param], lr=0.1, impl=place.impl)
    loss = (param * param).sum()
    param.grad = torch.ones_like(param)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_closure_and_a_later_group(place: Place) -> None:
    first, second = (nn.Parameter(torch.ones(2, device=place.device)) for _ in range(2))
    optimizer = FusedAdamWEma([first], lr=0.5, weight_decay=0.0, impl=place.impl)
    optimizer.add_param_group({"params": second, "lr": 0.25})

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (first + 2 * second).sum()
        value.backward()
        return value

    assert optimizer.step(loss) == 6
    # The first step of Adam has the size of the rate.
    torch.testing.assert_close(first.detach(), torch.full_like(first, 0.5))
    torch.testing.assert_close(second.detach(), torch.full_like(second, 0.75))


def test_a_copy_of_an_optimizer_moves_its_own_tensors() -> None:
    param, target = nn.Parameter(torch.ones(2)), torch.zeros(2)
    optimizer = FusedAdamWEma([param], targets=[target], lr=0.5, weight_decay=0.0)
    twin = copy.deepcopy(optimizer)
    (own,) = twin.param_groups[0]["params"]
    own.grad = torch.ones(2)
    twin.step(momentum=0.5)
    torch.testing.assert_close(own.detach(), torch.full((2,), 0.5))
    assert torch.equal(param, torch.ones(2)) and torch.equal(target, torch.zeros(2))


def one(**options: Any) -> FusedAdamWEma:
    return FusedAdamWEma([nn.Parameter(torch.ones(3, 4))], **options)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"amsgrad": True}, ValueError, "amsgrad: True; it is not supported: use torch.optim"),
        ({"maximize": True}, ValueError, "maximize: True; it is not supported"),
        ({"lr": -1.0}, ValueError, "lr: -1.0; pass a finite number"),
        ({"lr": torch.ones(2)}, ValueError, r"lr: \(2,\)"),
        ({"betas": (0.9, 1.0)}, ValueError, "betas: 1.0"),
        ({"betas": (torch.tensor(0.9), 0.9)}, TypeError, "betas: a tensor; pass a float"),
        ({"impl": "cuda"}, ValueError, "impl: 'cuda'"),
        ({"targets": []}, ValueError, "targets: 0 entries; expected 1"),
        ({"targets": [torch.ones(3)]}, ValueError, r"targets\[0\]: \(3,\)"),
        ({"targets": [torch.ones(3, 4).half()]}, TypeError, r"targets\[0\]: torch.float16"),
        ({"shadows": [torch.ones(3, 4)]}, TypeError, r"shadows\[0\]: torch.float32"),
        (
            {"target_shadows": [torch.ones(3, 4).half()]},
            ValueError,
            r"target_shadows\[0\]: a copy of a target that is None",
        ),
    ],
)
def test_bad_settings_are_named(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        one(**options)


def test_half_precision_weights_are_refused() -> None:
    with pytest.raises(TypeError, match=r"params\[0\]: torch.bfloat16; .* as a shadow"):
        FusedAdamWEma([nn.Parameter(torch.ones(3).bfloat16())])
    with pytest.raises(TypeError, match=r"params\[0\]: torch.float16"):
        one().add_param_group({"params": nn.Parameter(torch.ones(3).half())})


def test_bad_steps_are_named() -> None:
    optimizer = one(targets=[torch.ones(3, 4)])
    (param,) = optimizer.param_groups[0]["params"]
    for momentum in (None, 2.0, torch.tensor(-1.0)):
        with pytest.raises(ValueError, match="momentum: "):
            optimizer.step(momentum=momentum)
    with pytest.raises(ValueError, match=r"momentum: 0\.5; there are no targets"):
        one().step(momentum=0.5)
    param.grad = torch.eye(3, 4).to_sparse()
    with pytest.raises(ValueError, match=r"params\[0\].grad: torch.sparse_coo; sparse gradients"):
        optimizer.step(momentum=0.5)


def test_state_that_does_not_fit_is_refused() -> None:
    param = nn.Parameter(torch.ones(3))
    other = torch.optim.AdamW([param], amsgrad=True)
    with pytest.raises(ValueError, match="amsgrad: True"):
        FusedAdamWEma([param]).load_state_dict(other.state_dict())
    smaller = nn.Parameter(torch.ones(2))
    smaller.grad = torch.ones(2)
    other = torch.optim.AdamW([smaller])
    other.step()
    with pytest.raises(ValueError, match=r"state exp_avg: \(2,\); expected \(3,\)"):
        FusedAdamWEma([param]).load_state_dict(other.state_dict())
    optimizer = FusedAdamWEma([param])
    param.grad = torch.ones(3)
    optimizer.state[param] = {name: torch.zeros(2) for name in ("exp_avg", "exp_avg_sq")}
    optimizer.state[param]["step"] = torch.zeros(())
    with pytest.raises(ValueError, match=r"state: .* expected 3, as weights"):
        optimizer.step()
