"""One step of AdamW with all that follows the weights, in every implementation that runs here."""

from __future__ import annotations

import importlib
import weakref

import pytest
import torch
from torch import Tensor

from sjepa_kernels import adamw_ema_
from sjepa_kernels.optim import rows
from tests.kernels.cases import Place, assert_within_budget, places
from tests.kernels.ops.adamw_ema_ import formula

HAS_CPP = True
BETAS = (0.9, 0.99)


def state_of(param: Tensor, place: Place, done: float = 0.0) -> dict[str, list[Tensor]]:
    """The lists of one weight before a step."""
    moments = [0.1 * torch.randn_like(param), torch.rand_like(param)]
    names = "params", "exp_avgs", "exp_avg_sqs", "steps"
    tensors = param, *moments, torch.tensor(done, device=place.device)
    return {name: [x] for name, x in zip(names, tensors, strict=True)}


def cloned(lists: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    return {name: [x.clone() for x in column] for name, column in lists.items()}


@pytest.mark.parametrize("grad_dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("done", [0.0, 9.0, 100_000.0])
def test_values(place: Place, grad_dtype: torch.dtype, done: float) -> None:
    lists = state_of(torch.randn(4099).to(place.device), place, done)
    grad = torch.randn(4099).to(place.device, grad_dtype)
    target, shadow, target_shadow = (torch.randn(4099).to(place.device) for _ in range(3))
    before = cloned(lists | {"targets": [target]})
    shadows = [[x.bfloat16()] for x in (shadow, target_shadow)]
    adamw_ema_(
        grads=[grad], lr=0.02, betas=BETAS, weight_decay=0.1, targets=[target], momentum=0.97,
        shadows=shadows[0], target_shadows=shadows[1], impl=place.impl, **lists,
    )  # fmt: skip
    found = [*(lists[name][0] for name in ("params", "exp_avgs", "exp_avg_sqs")), target]
    ends = []
    for dtype in (torch.float32, torch.float64):
        p, m, v, t = (
            before[x][0].to(dtype) for x in ("params", "exp_avgs", "exp_avg_sqs", "targets")
        )
        moved = formula(p, grad.to(dtype), m, v, done + 1, 0.02, 0.1)
        ends.append([*moved, torch.lerp(t, moved[0], 0.03)])
    for k, (ours, eager, true) in enumerate(zip(found, *ends, strict=True)):
        assert_within_budget(ours, eager, true, f"tensor {k}")
    assert lists["steps"][0] == done + 1
    for (copy,), original in zip(shadows, (found[0], target), strict=True):
        assert_within_budget(copy, original.bfloat16(), original, "copy")
        assert place.impl == "triton" or torch.equal(copy, original.bfloat16())


@pytest.mark.parametrize("flag", [0.0, -0.0, 1.0, -1.0, float("nan"), float("inf")])
def test_a_flag_skips_everything(place: Place, flag: float) -> None:
    lists = state_of(torch.randn(7, device=place.device), place, 3.0)
    lists |= {"targets": [torch.randn(7, device=place.device)]}
    lists |= {
        name: [torch.randn(7, device=place.device).half()] for name in ("shadows", "target_shadows")
    }
    before = cloned(lists)
    grad = torch.full((7,), 0.5 if flag == 0 else float("nan"), device=place.device)
    flagged = torch.tensor(flag, device=place.device)
    adamw_ema_(grads=[grad], lr=0.1, momentum=0.5, skip=flagged, impl=place.impl, **lists)
    same = {name: torch.equal(x[0], before[name][0]) for name, x in lists.items()}
    assert set(same.values()) == {flag != 0}, same


def test_a_weight_without_gradient_stays_and_is_followed(place: Place) -> None:
    param = torch.randn(5, device=place.device)
    lists = state_of(param.clone(), place, 3.0)
    before = cloned(lists)
    target, shadow = torch.zeros(5, device=place.device), torch.zeros(5, device=place.device).half()
    adamw_ema_(
        grads=[None], lr=0.1, targets=[target], momentum=0.75, shadows=[shadow], impl=place.impl,
        **lists,
    )  # fmt: skip
    assert all(torch.equal(x[0], before[name][0]) for name, x in lists.items())
    torch.testing.assert_close(target, 0.25 * param)
    torch.testing.assert_close(shadow, param.half())


def test_numbers_on_the_device_are_those_by_value(place: Place) -> None:
    for dtype in (torch.float32, torch.float64):
        made = state_of(torch.randn(9).to(place.device), place)
        grad, start = torch.randn(2, 9).to(place.device)
        ends = []
        for tensors in (False, True):
            lists, target = cloned(made), start.clone()
            numbers = {"lr": 0.125, "momentum": 0.75, "clip": 0.5}
            if tensors:
                at = {"dtype": dtype, "device": place.device}
                numbers = {name: torch.tensor(x, **at) for name, x in numbers.items()}
            adamw_ema_(grads=[grad], targets=[target], impl=place.impl, **numbers, **lists)
            ends.append([target, *(x[0] for x in lists.values())])
        assert all(map(torch.equal, *ends))


@pytest.mark.parametrize("strides", ["turned", "gaps"])
def test_strides(place: Place, strides: str) -> None:
    """Dense in another order, and with gaps, for which there is no kernel."""
    made = torch.randn(6, 8, device=place.device)
    param = made.t() if strides == "turned" else made[:, ::2]
    grad, target = torch.randn(2, *param.shape, device=place.device)
    ends = []
    for layout in (param, param.contiguous()):
        # A clone has no gaps.
        lists = state_of(layout, place)
        for name in ("exp_avgs", "exp_avg_sqs"):
            lists[name][0].fill_(0.25)
        own = target.clone()
        adamw_ema_(grads=[grad], lr=0.1, targets=[own], momentum=0.5, impl=place.impl, **lists)
        ends.append([*(lists[x][0].contiguous() for x in ("params", "exp_avgs")), own])
        param.copy_(made.t() if strides == "turned" else made[:, ::2])
    torch.testing.assert_close(*ends)


def test_more_weights_than_one_launch_takes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def moved() -> list[Tensor]:
        torch.manual_seed(0)
        made = [state_of(torch.randn(3).to(place.device), place) for _ in range(5)]
        lists = {name: [one[name][0] for one in made] for name in made[0]}
        grads = list(torch.randn(5, 3).to(place.device).unbind())
        adamw_ema_(grads=grads, lr=0.1, impl=place.impl, **lists)
        return [x for column in lists.values() for x in column]

    expected = moved()
    monkeypatch.setattr(rows, "MOST", 2)
    assert all(map(torch.equal, moved(), expected))


@pytest.mark.parametrize("half", [False, True])
def test_every_vector_width(lanes: int, half: bool) -> None:
    for size in (1, 7, 16, 33):
        place = Place("cpu", "cpu")
        lists = state_of(torch.randn(size), place, 2.0)
        grad, target = torch.randn(2, size)
        p, m, v = (lists[name][0].double() for name in ("params", "exp_avgs", "exp_avg_sqs"))
        expected = formula(p, grad.double(), m, v, 3.0, 0.1, 0.1)
        followed = torch.lerp(target.double(), expected[0], 0.6)
        shadow, copy = torch.zeros(2, size, dtype=torch.bfloat16)
        copies = {"shadows": [shadow], "target_shadows": [copy]} if half else {}
        adamw_ema_(
            grads=[grad], lr=0.1, betas=BETAS, weight_decay=0.1, targets=[target], momentum=0.4,
            impl="cpu", **copies, **lists,
        )  # fmt: skip
        found = [*(lists[x][0] for x in ("params", "exp_avgs", "exp_avg_sqs")), target]
        for ours, true in zip(found, [*expected, followed], strict=True):
            torch.testing.assert_close(ours.double(), true, rtol=1e-6, atol=1e-6)
        if half:
            assert torch.equal(shadow, found[0].bfloat16()) and torch.equal(copy, target.bfloat16())


def test_tables_live_as_long_as_their_weights() -> None:
    """As those of `EmaPlan`."""
    if "triton" not in [p.impl for p in places(True)]:
        pytest.skip("cannot run here")
    place = Place("cpu", "triton")
    module = importlib.import_module("sjepa_kernels.optim.adamw_kernel")

    def update() -> dict[str, list[Tensor]]:
        lists = state_of(torch.randn(5), place)
        for _ in range(2):
            # The gradients lie elsewhere each time; the tables do not know of it.
            adamw_ema_(grads=[torch.randn(5)], lr=0.1, impl="triton", **lists)
        return lists

    first = update()
    (table,) = module._tables[first["params"][0]].values()
    others = [update() for _ in range(20)]
    (same,) = module._tables[first["params"][0]].values()
    assert same is table and int(table.tickets.sum()) == 0
    freed = weakref.ref(table)
    del first, others, table, same
    assert freed() is None


def test_nothing_to_move() -> None:
    adamw_ema_([], [], [], [], [], lr=0.1)
