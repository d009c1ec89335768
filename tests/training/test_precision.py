"""The choice of the compute precision: who decides, by how much, and what a resumed run keeps."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from sjepa_fast.config.schema import TrainConfig, replace
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.subject import scoring_dtype
from sjepa_fast.runtime import device as device_module
from sjepa_fast.runtime.dist import World
from sjepa_fast.training import precision
from sjepa_fast.training.precision import Trial, pick_dtype, try_block
from tests.tiny import CPU, metrics, trained, weights

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "native_bfloat16", lambda device: True)


def found_by_trial(monkeypatch: pytest.MonkeyPatch, float32: float, bfloat16: float) -> list[tuple]:
    """Make every trial find these seconds; returns the list of the trials' arguments."""
    asked: list[tuple] = []

    def trial(*shape: int) -> Trial:
        asked.append(shape)
        return Trial(float32, bfloat16)

    monkeypatch.setattr(precision, "try_block", trial)
    return asked


def config_in(run: Path, dtype: str = "auto") -> TrainConfig:
    return replace(TrainConfig(run=run), runtime={"dtype": dtype})


@pytest.mark.parametrize(
    ("float32", "bfloat16", "wanted"),
    [(0.190, 0.100, BFLOAT16), (0.106, 0.100, BFLOAT16), (0.104, 0.1, FLOAT32), (1, 2, FLOAT32)],
)
def test_the_faster_wins_and_bfloat16_needs_a_lead(
    native: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    float32: float, bfloat16: float, wanted: torch.dtype,
) -> None:  # fmt: skip
    asked = found_by_trial(monkeypatch, float32, bfloat16)
    dtype, reason = pick_dtype(config_in(tmp_path), 25, CPU, World())
    assert dtype == wanted
    # 120 frames / 4 x 25 joints are 750 tokens, whose block has 1.756 GFLOP forward (method 8.3).
    assert asked == [(256, 8, 750, 1)]
    for part in (f"{float32 / bfloat16:.2f}x float32", f"{1000 * bfloat16:.1f} and"):
        assert part in reason, reason


def test_a_trial_has_as_many_sequences_as_are_affordable(
    native: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = found_by_trial(monkeypatch, 2, 1)
    narrow = replace(config_in(tmp_path), model={"width": 64, "heads": 2}, data={"frames": 40})
    pick_dtype(narrow, 20, CPU, World())
    # 200 tokens of width 64: 24 N D^2 + 4 N^2 D = 29.9 MFLOP forward, three times that in all.
    assert asked == [(64, 2, 200, 33)]
    few = replace(narrow, optim={"batch_size": 3}, data={"bodies": 2})
    pick_dtype(few, 20, CPU, World())
    assert asked[1] == (64, 2, 200, 6)


def test_nothing_is_timed_where_nothing_is_open(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = found_by_trial(monkeypatch, 2, 1)
    monkeypatch.setattr(device_module, "native_bfloat16", lambda device: False)
    dtype, reason = pick_dtype(config_in(tmp_path), 25, CPU, World())
    assert dtype == FLOAT32 and reason == "this CPU has no native bfloat16"
    for name in ("float32", "bfloat16"):
        dtype, reason = pick_dtype(config_in(tmp_path, name), 25, CPU, World())
        assert dtype == getattr(torch, name) and reason == "asked for"
    assert asked == []


def test_all_processes_take_what_process_0_found(
    native: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = found_by_trial(monkeypatch, 2, 1)

    @dataclass(frozen=True)
    class TwoProcesses(World):
        """Adds what the other process would contribute."""

        other: float = 0.0
        size: int = 2

        def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
            return tensor + self.other

    for answer, wanted in ((0.0, FLOAT32), (1.0, BFLOAT16)):
        follower = TwoProcesses(rank=1, other=answer)
        assert pick_dtype(config_in(tmp_path), 25, CPU, follower)[0] == wanted
    assert asked == []
    assert pick_dtype(config_in(tmp_path), 25, CPU, TwoProcesses(rank=0))[0] == BFLOAT16
    assert asked == [(256, 8, 750, 1)]


def test_a_resumed_run_keeps_its_precision(
    native: None, monkeypatch: pytest.MonkeyPatch, store: Path, tmp_path: Path
) -> None:
    auto = ["--runtime.dtype=auto", "--optim.length=4", "--checkpoint.every=2"]
    found_by_trial(monkeypatch, 1, 2)
    whole, parts = trained(store, tmp_path / "whole", *auto), tmp_path / "parts"
    trained(store, parts, *auto)
    # As if it had been killed after its second step.
    newest = sorted((parts / "checkpoints").glob("step-*"))[-1]
    assert newest.name == "step-00000004"
    newest.rename(parts / "gone")
    asked = found_by_trial(monkeypatch, 2, 1)
    trained(store, parts, *auto, "--resume=auto")
    assert asked == []
    begun = json.loads((parts / "env.json").read_text())
    assert (begun["dtype"], begun["dtype_reason"]) == ("float32", "as the run began")
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(parts)[name], tensor), name
    assert [row.get("loss") for row in metrics(parts)] == [
        row.get("loss") for row in metrics(whole)
    ]
    # A run that was never saved begins anew, also in this respect.
    (tmp_path / "env.json").write_text('{"dtype": "float32"}')
    assert pick_dtype(config_in(tmp_path), 25, CPU, World())[0] == BFLOAT16
    (parts / "env.json").write_text('{"dtype": "int8"}')
    with pytest.raises(InputError, match=r"env\.json"):
        pick_dtype(config_in(parts), 25, CPU, World())


def test_a_score_takes_the_precision_of_the_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = found_by_trial(monkeypatch, 2, 1)
    for native, recorded, wanted in (
        (True, None, FLOAT32),
        (True, "float32", FLOAT32),
        (True, "bfloat16", BFLOAT16),
        (False, "bfloat16", FLOAT32),
    ):
        monkeypatch.setattr(device_module, "native_bfloat16", lambda device, has=native: has)
        if recorded is not None:
            (tmp_path / "env.json").write_text(json.dumps({"dtype": recorded}))
        assert scoring_dtype("auto", tmp_path, CPU) == wanted
        assert scoring_dtype("bfloat16", tmp_path, CPU) == BFLOAT16
    assert asked == []


def test_a_trial_times_both_in_turn_and_takes_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    # First a warm-up of each; after that, rounds.
    took = iter([9.0, 9.0, 0.3, 0.8, 0.5, 0.7, 0.4, 0.6, 0.9, 0.9, 0.9, 0.9])
    order: list[torch.dtype] = []

    def once(block: object, x_BND: torch.Tensor, dtype: torch.dtype) -> float:
        assert x_BND.shape == (2, 3, 16) and torch.get_num_threads() == 1
        order.append(dtype)
        return next(took)

    monkeypatch.setattr(precision, "_once", once)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    assert try_block.__wrapped__(16, 1, 3, 2) == Trial(0.3, 0.6)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
    assert order == [FLOAT32, BFLOAT16] * (1 + precision.ROUNDS)


def test_a_trial_that_takes_too_long_ends_after_two_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "BUDGET_S", 0.0)
    calls: list[torch.dtype] = []
    monkeypatch.setattr(precision, "_once", lambda b, x, dtype: calls.append(dtype) or 1.0)
    try_block.__wrapped__(16, 1, 3, 2)
    assert len(calls) == 2 * 3


def test_a_real_trial_changes_no_draw_and_is_made_once() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    trial = try_block(32, 2, 40, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert 0 < min(trial) < max(trial) < 60
    assert try_block(32, 2, 40, 2) is trial
