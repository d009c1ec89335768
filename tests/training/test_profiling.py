"""The profile adds up, names the passes, counts what was called, and changes no weight."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from sjepa_fast.config.files import read_config
from sjepa_fast.training import profiling
from sjepa_fast.training.flops import step_flops
from sjepa_fast.training.profiling import CLOCKED, TRACED, WARMUP, PassClock, summary
from tests.tiny import metrics, trained


class Clock:
    """Time that passes only where it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Part(nn.Module):
    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds, self.linear = clock, seconds, nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.clock.now += self.seconds
        out: torch.Tensor = self.linear(x)
        return out


class Model(nn.Module):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.view_encoder, self.predictor = Part(clock, 2.0), Part(clock, 3.0)
        self.target_encoder = Part(clock, 5.0)

    def network(self, name: str) -> nn.Module | None:
        return dict(self.named_children()).get(name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.predictor(self.view_encoder(x)) - self.target_encoder(x)
        self.clock.now += 0.25
        return out.sum()


def test_each_pass_gets_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(profiling.time, "perf_counter", clock.perf_counter)
    model = Model(clock)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    passes = PassClock(model, optimizer, torch.device("cpu"))

    def step() -> str:
        clock.now += 0.5
        loss = model(torch.ones(1, 2))
        clock.now += 7.0
        loss.backward()
        optimizer.step()
        clock.now += 0.125
        return "result"

    with passes.hooks():
        assert [passes.step(step) for _ in range(3)] == ["result"] * 3
    assert passes.seconds() == {
        "data": 0.5,
        "student": 2.0,
        "loss": 0.25,
        "predictor": 3.0,
        "teacher": 5.0,
        "backward": 7.0,
        "optimiser": 0.0,
        "EMA, center": 0.125,
    }
    step()
    assert len(passes.marks) == 11, "the hooks are gone"


def test_a_profiled_run_leaves_trace_and_page_and_trains_as_ever(
    store: Path, tmp_path: Path
) -> None:
    plain = trained(store, tmp_path / "plain", "--optim.length=18")
    profiled = trained(store, tmp_path / "profiled", "--optim.length=18", "--profile")
    assert not (plain / "profile").exists()
    losses = [[row["loss"] for row in metrics(run) if "loss" in row] for run in (plain, profiled)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 18 > WARMUP + CLOCKED + TRACED

    folder = profiled / "profile"
    facts = json.loads((folder / "profile.json").read_text())
    assert facts["flops"] == step_flops(read_config(profiled / "config.yaml")).total
    assert facts["step_seconds"] == pytest.approx(sum(facts["seconds"].values()))
    assert {"data", "student", "predictor", "teacher", "backward"} <= facts["seconds"].keys()
    # An AdamW step, the backward of six linear layers a block, and so on.
    assert facts["counts"]["operators"] > 200 and facts["counts"]["kernel launches"] == 0
    with gzip.open(folder / "trace.json.gz", "rt") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert names.count("pass: teacher") == names.count("pass: optimiser") == TRACED
    page = (folder / "profile.md").read_text()
    assert "| teacher |" in page and "aten::" in page


def test_the_page_says_what_was_measured() -> None:
    facts = {
        "device": "cpu",
        "torch": "2",
        "dtype": "bfloat16",
        "seconds": {"student": 0.1, "backward": 0.3},
        "run_seconds": 0.2,
        "step_seconds": 0.4,
        "flops": 1e12,
        "matmul_flops": 2e13,
        "peak_mib": 512.0,
        "counts": {"operators": 100.0, "host waits": 0.0},
    }
    page = summary(facts, "TABLE")
    assert "| student | 100.00 | 25.0 % |" in page
    assert "200.00 ms per step as the run has it" in page
    assert "5.00 TFLOP/s: 25 % of the 20.00" in page
    assert "512 MiB" in page and "100 operators, 0 host waits" in page and "TABLE" in page
