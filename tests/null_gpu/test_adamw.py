"""A step of `FusedAdamWEma` on a card: one launch, no wait, and the CPU's numbers when captured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sjepa_kernels import FusedAdamWEma
from tests.null_gpu import gpu
from tests.null_gpu.traces import GPU
from tests.null_gpu.traffic import Traffic
from tests.null_gpu.values import compute_values, poison_free_memory

SHAPES = [(3, 5), (4099,), (7,), (2, 3)]
CPU = torch.device("cpu")
COUNTED = ("kernel", "triton", "gemm", "copy", "memset", "sync", "library", "graph_launch")


class Net:
    """Weights in two groups, of which the last gets no gradient; targets and copies of some."""

    def __init__(self, device: torch.device) -> None:
        torch.manual_seed(0)
        self.params = [nn.Parameter(torch.randn(shape).to(device)) for shape in SHAPES]
        first = self.params[0]
        self.targets = [first.detach().clone(), None, None, self.params[3].detach().clone()]
        self.shadows = [nn.Parameter(first.detach().bfloat16()), None, None, None]
        self.copies = [first.detach().bfloat16(), None, None, None]
        self.rate, self.momentum, self.clip, self.skip = (
            torch.tensor(x, device=device) for x in (0.01, 0.9, 0.5, 0.0)
        )
        groups = [{"params": self.params[:2], "weight_decay": 0.1}, {"params": self.params[2:]}]
        self.optimizer = FusedAdamWEma(
            groups, lr=self.rate, targets=self.targets, shadows=self.shadows,
            target_shadows=self.copies,
        )  # fmt: skip
        self.factor = torch.tensor(1.0, device=device)

    def backward(self) -> None:
        """Gradients that depend on the weights and lie elsewhere each time."""
        self.optimizer.zero_grad()
        for p in self.params[:3]:
            p.grad = self.factor * p.detach().cos()

    def step(self) -> None:
        self.backward()
        self.optimizer.step(momentum=self.momentum, clip=self.clip, skip=self.skip)

    def next(self, number: int) -> None:
        """What changes between steps; one is skipped, with gradients that are not finite."""
        self.rate.fill_(0.01 * (number + 1))
        self.momentum.fill_(0.9 - 0.1 * number)
        self.skip.fill_(float(number == 5))
        self.factor.fill_(float("nan") if number == 5 else 1.0)

    def state(self) -> list[Tensor]:
        found = [*self.params, *self.targets, *self.shadows, *self.copies]
        found += [x for state in self.optimizer.state.values() for x in state.values()]
        return [x.detach().cpu().clone() for x in found if x is not None]


def launches(run: Any) -> list[tuple[str, str]]:
    gpu.reset()
    run()
    return [(r.kind, r.name) for r in gpu.records() if r.kind in COUNTED]


def test_a_step_is_one_launch_wherever_gradients_and_numbers_are() -> None:
    net = Net(GPU)
    net.step()
    for numbers in ({}, {"clip": 0.25, "skip": None, "momentum": 0.5}):
        net.backward()
        given = {"momentum": net.momentum, "clip": net.clip, "skip": net.skip} | numbers
        assert launches(lambda given=given: net.optimizer.step(**given)) == [
            ("triton", "_adamw_kernel")
        ]
    net.optimizer.param_groups[0]["lr"], net.optimizer.param_groups[1]["lr"] = 0.0, 0.3
    assert launches(lambda: net.optimizer.step(momentum=0.5)) == [("triton", "_adamw_kernel")]
    assert gpu.problems() == []


def test_pytorch_launches_six_kernels_for_the_weights_alone() -> None:
    """The same step without it; what is asserted above could not fail if this were one."""
    net = Net(GPU)
    groups = [{"params": net.params[:2]}, {"params": net.params[2:]}]
    plain = torch.optim.AdamW(groups, lr=0.1, fused=True, capturable=True)
    plain.found_inf = net.skip  # type: ignore[attr-defined]
    for group in plain.param_groups:
        group["lr"] = net.rate
    for _ in range(2):
        net.backward()
        found = launches(plain.step)
    # For each group the counts up, the weights, and the counts down where the step is skipped.
    assert [kind for kind, _ in found] == ["kernel"] * 6


def test_replays_compute_what_the_cpu_computes() -> None:
    here = Net(CPU)
    with compute_values() as values:
        there = Net(GPU)
        stream = torch.cuda.Stream()
        graph = None
        for number in range(8):
            poison_free_memory()
            here.next(number)
            there.next(number)
            here.step()
            if number < 3:
                with torch.cuda.stream(stream):
                    there.step()
            elif graph is None:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=stream):
                    there.step()
                # The gradients die, as in a training step.
                there.optimizer.zero_grad()
                graph.replay()
            else:
                graph.replay()
            for k, (found, expected) in enumerate(zip(there.state(), here.state(), strict=True)):
                limit = {"rtol": 1e-2, "atol": 1e-3} if found.dtype == torch.bfloat16 else {}
                torch.testing.assert_close(found, expected, **limit, msg=f"{number}, tensor {k}")
    assert values.computed["_adamw_kernel"] == 4
    (count,) = {float(s["step"]) for s in there.optimizer.state.values()}
    assert count == 7


@pytest.mark.parametrize("grad", [torch.float32, torch.bfloat16])
def test_bytes_are_those_of_what_is_there(grad: torch.dtype) -> None:
    param = nn.Parameter(torch.zeros(48, 64, device=GPU))
    half = nn.Parameter(param.detach().bfloat16())
    still = nn.Parameter(torch.zeros(10, device=GPU))
    targets = [param.detach().clone(), still.detach().clone()]
    optimizer = FusedAdamWEma(
        [param, still], targets=targets, shadows=[half, None],
        target_shadows=[half.detach().clone(), None],
    )  # fmt: skip
    # A copy that learns has the gradient.
    leaf = half if grad == torch.bfloat16 else param
    leaf.grad = torch.zeros_like(leaf)
    optimizer.step(momentum=0.5)
    with Traffic() as traffic:
        optimizer.step(momentum=0.5)
    (row,) = traffic.rows
    assert (row.group, row.name) == ("ours", "optim.adamw_kernel._adamw_kernel")
    # Weight, moments and target twice, two copies, the gradient; of the other weight 3.
    assert row.bytes == 48 * 64 * (8 * 4 + 2 * 2 + grad.itemsize) + 10 * 3 * 4
