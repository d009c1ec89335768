"""The multi-tensor moving average against float64, in every implementation that runs here."""

from __future__ import annotations

import importlib
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from sjepa_kernels import EmaPlan, ema_update_
from tests.kernels.cases import Place, assert_within_budget, places

HAS_CPP = True

MOMENTA = [0.0, 0.3, 0.9, 0.9999, 1.0]


def random_group(dtype: torch.dtype, device: str) -> list[Tensor]:
    """Scalar, empty, transposed, strided, one chunk exactly, and one chunk and a bit."""
    pieces = [(3, 5), (0,), (), (4096,), (4099,), (6, 8), (2, 9)]
    tensors = [torch.randn(shape).to(device, dtype) for shape in pieces]
    tensors[5] = tensors[5].t()
    tensors[6] = tensors[6][:, ::2]
    return tensors


@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values(place: Place, dtype: torch.dtype, momentum: float) -> None:
    targets, sources = random_group(dtype, place.device), random_group(dtype, place.device)
    truth = [
        momentum * t.double() + (1 - momentum) * s.double()
        for t, s in zip(targets, sources, strict=True)
    ]
    plain = [t.clone() for t in targets]
    torch._foreach_lerp_(plain, sources, 1 - momentum)
    before = [s.clone() for s in sources]
    EmaPlan(targets, sources, impl=place.impl).update_(momentum)
    for k, (ours, eager, true) in enumerate(zip(targets, plain, truth, strict=True)):
        assert_within_budget(ours, eager, true, f"tensor {k}")
    assert all(map(torch.equal, sources, before))


@pytest.mark.parametrize("shadow", [torch.bfloat16, torch.float16], ids=str)
def test_shadows_are_the_rounded_targets(place: Place, shadow: torch.dtype) -> None:
    targets = random_group(torch.float32, place.device)
    sources = random_group(torch.float32, place.device)
    shadows = [torch.full_like(t, float("nan"), dtype=shadow) for t in targets]
    momentum = torch.tensor(0.99, device=place.device)
    EmaPlan(targets, sources, shadows, impl=place.impl).update_(momentum)
    for k, (target, copy) in enumerate(zip(targets, shadows, strict=True)):
        assert_within_budget(copy, target.to(shadow), target, f"shadow {k}")
        if place.impl != "triton":
            assert torch.equal(copy, target.to(shadow))


def test_sources_in_half_precision(place: Place) -> None:
    targets = [torch.randn(3, 7).to(place.device) for _ in range(2)]
    sources = [torch.randn(3, 7).to(place.device, dt) for dt in (torch.bfloat16, torch.float16)]
    expected = [0.75 * t + 0.25 * s.float() for t, s in zip(targets, sources, strict=True)]
    ema_update_(targets, sources, 0.75, impl=place.impl)
    torch.testing.assert_close(targets, expected)


def test_plan_follows_tensors_that_move(place: Place) -> None:
    parameter = torch.nn.Parameter(torch.zeros(4, device=place.device))
    source = torch.ones(4, device=place.device)
    plan = EmaPlan([parameter], [source], impl=place.impl)
    plan.update_(0.5)
    parameter.data = torch.full_like(source, 8.0)
    plan.update_(0.5)
    torch.testing.assert_close(parameter.detach(), torch.full_like(source, 4.5))


@pytest.mark.parametrize("impl", ["cpu", "triton"])
def test_tables_live_as_long_as_their_targets(impl: str) -> None:
    """A captured graph replays with their addresses, however many other plans there were since."""
    if impl not in [p.impl for p in places(True) if not p.missing]:
        pytest.skip("cannot run here")

    def update() -> list[torch.Tensor]:
        pair = [torch.randn(5), torch.randn(5)]
        EmaPlan(pair[:1], pair[1:], impl=impl).update_(0.5)
        return pair

    module = importlib.import_module("sjepa_kernels.ema")
    first = update()
    (table,) = module._tables[first[0]].values()
    others = [update() for _ in range(20)]
    (same,) = module._tables[first[0]].values()
    assert same is table and len({id(pair[0]) for pair in others}) == 20
    freed = weakref.ref(table)
    del first, table, same
    assert freed() is None


def test_tables_know_a_shorter_tensor_at_the_same_place(place: Place) -> None:
    memory, source = torch.zeros(8, device=place.device), torch.ones(8, device=place.device)
    for length in (8, 3):
        ema_update_([memory[:length]], [source[:length]], 0.5, impl=place.impl)
    expected = torch.tensor([0.75] * 3 + [0.5] * 5, device=place.device)
    torch.testing.assert_close(memory, expected)


def test_momentum_one_holds_and_repeats_bitwise(place: Place) -> None:
    start = random_group(torch.float32, place.device)
    sources = random_group(torch.float32, place.device)
    held = [t.clone() for t in start]
    EmaPlan(held, sources, impl=place.impl).update_(1.0)
    assert all(map(torch.equal, held, start))
    runs = []
    for _ in range(2):
        copy = [t.clone() for t in start]
        EmaPlan(copy, sources, impl=place.impl).update_(0.99)
        runs.append(copy)
    assert all(map(torch.equal, *runs))


def test_every_vector_width(lanes: int) -> None:
    for size in (1, 7, 16, 33):
        for momentum in (0.2, 0.9):
            target, source = torch.randn(2, size).unbind()
            expected = torch.lerp(target, source, 1 - momentum)
            ema_update_([target], [source], momentum, impl="cpu")
            torch.testing.assert_close(target, expected, rtol=3e-7, atol=1e-7)


def test_bfloat16_shadow_rounds_ties_and_keeps_nan(lanes: int) -> None:
    tie = 1 + 2.0**-8
    numbers = [tie, 1 + 3 * 2.0**-8, -tie, float("inf"), float("nan"), 3.4e38, 0.0, 1e-40]
    target = torch.tensor(numbers * 5)[:-3]  # whole vectors and a part of one
    shadow = torch.zeros_like(target, dtype=torch.bfloat16)
    ema_update_([target], [target.clone()], 1.0, shadows=[shadow], impl="cpu")
    expected = target.to(torch.bfloat16)
    assert torch.equal(shadow.nan_to_num(), expected.nan_to_num())
    assert torch.equal(shadow.isnan(), expected.isnan())


def test_nothing_to_update() -> None:
    ema_update_([], [], 0.9)


@pytest.mark.parametrize("momentum", [0.99, torch.tensor(0.5)], ids=["0.99", "tensor"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_master_is_refused(dtype: torch.dtype, momentum: float | Tensor) -> None:
    target, source = torch.zeros(2, dtype=dtype), torch.ones(2, dtype=dtype)
    with pytest.raises(ValueError, match=r"targets\[0\]: .*keep a float32 target"):
        ema_update_([target], [source], momentum)
    assert torch.equal(target, torch.zeros_like(target))
    ema_update_([target], [source], 0.5)
    assert torch.equal(target, torch.full_like(target, 0.5))


SHARED = torch.zeros(2)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"sources": []}, ValueError, "sources: 0 tensors; expected 1"),
        ({"sources": [torch.zeros(3)]}, ValueError, r"sources\[0\]: \(3,\)"),
        ({"targets": [torch.zeros(2).int()]}, TypeError, r"targets\[0\]: torch.int32"),
        (
            {"targets": [SHARED] * 2, "sources": [torch.ones(2)] * 2},
            ValueError,
            r"targets\[1\]: the",
        ),
        ({"momentum": 1.5}, ValueError, r"momentum: 1\.5; pass a number in \[0, 1\]"),
        ({"momentum": float("nan")}, ValueError, "momentum: nan"),
        ({"momentum": torch.ones(2)}, ValueError, r"momentum: \(2,\)"),
        ({"shadows": [torch.zeros(2)]}, TypeError, r"shadows\[0\]: torch.float32"),
        ({"shadows": [torch.zeros(2).half()] * 2}, ValueError, "shadows: 2 tensors"),
        (
            {
                "targets": [torch.zeros(2), torch.zeros(2)],
                "sources": [torch.ones(2)] * 2,
                "shadows": [torch.zeros(2).half()] * 2,
            },
            ValueError,
            r"shadows\[1\]: the same memory as an earlier tensor",
        ),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], error: type[Exception], words: str) -> None:
    good = {"targets": [torch.zeros(2)], "sources": [torch.ones(2)], "momentum": 0.9}
    with pytest.raises(error, match=words):
        ema_update_(**(good | change))
