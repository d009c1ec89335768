"""The short form of `make torture`; what decides about equality is tested to see differences."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.tiny import run_python
from tests.torture.compare import compare


@pytest.mark.slow
def test_killed_runs_end_like_the_one_that_nobody_killed(tmp_path: Path) -> None:
    out = tmp_path / "torture.json"
    words = ["--kills", "14", "--objectives", "sjepa", "mamp", "--out", out]
    done = run_python("-m", "tests.torture", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert {(row["objective"], row["processes"]) for row in rows} == {
        (kind, count) for kind in ("sjepa", "mamp") for count in (1, 2)
    }
    for row in rows:
        assert row["kills"] >= 3 and row["resumes"] + row["restarts"] >= 2, row
        assert row["tensors"] > 100 and row["rows"] > 0 and row["files"] >= 5, row


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a run leaves, with both forms of tensor files."""
    folder = tmp_path / "run"
    for part in ("checkpoints/step-00000002", "results"):
        (folder / part).mkdir(parents=True)
    checkpoint = folder / "checkpoints" / "step-00000002"
    weights = {"center": torch.zeros(4), "predictor.mask_token": torch.ones(4)}
    safetensors.torch.save_file(weights, checkpoint / "model.safetensors", {"step": "2"})
    moments = {"exp_avg": torch.arange(3.0), "step": torch.tensor(2.0)}
    state = {"step": 2, "optimizer": {"state": {0: moments}, "groups": [{"betas": (0.9, 0.95)}]}}
    torch.save(state, checkpoint / "state.pt")
    rows = [{"step": 0, "knn": 50.0}, {"step": 2, "loss": 1.5, "ms_per_step": 3.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("config.yaml", "data.json", "train_ids.txt", "results/knn.json"):
        (folder / name).write_text(f"{name} of {folder}\n")
    return folder


def copied(run: Path) -> Path:
    twin = run.with_name("twin")
    shutil.copytree(run, twin)
    for name in ("config.yaml", "data.json", "train_ids.txt", "results/knn.json"):
        (twin / name).write_text((run / name).read_text().replace(str(run), str(twin)))
    return twin


def test_equal_runs_are_equal_and_times_do_not_count(run: Path) -> None:
    twin = copied(run)
    rows = [json.loads(line) for line in (twin / "metrics.jsonl").read_text().splitlines()]
    slower = [row | {"ms_per_step": 1.0, "clips_per_second": 2.0, "gpu_mb": 3.0} for row in rows]
    (twin / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in slower))
    assert compare(twin, run) == (8, 2, 4, [], [])


def spoil_weights(twin: Path) -> None:
    path = twin / "checkpoints" / "step-00000002" / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    # The sign of a zero: equal as a number, but not to the bit.
    weights["center"][1] = -0.0
    weights["predictor.mask_token"].view(torch.int32)[3] ^= 1
    safetensors.torch.save_file(weights, path, {"step": "3"})


def spoil_state(twin: Path) -> None:
    path = twin / "checkpoints" / "step-00000002" / "state.pt"
    state = torch.load(path, weights_only=True)
    state["optimizer"]["state"][0]["exp_avg"][0] = 1e-30
    state["optimizer"]["groups"][0]["betas"] = (0.9, 0.999)
    torch.save(state, path)


def spoil_row(twin: Path) -> None:
    text = (twin / "metrics.jsonl").read_text()
    (twin / "metrics.jsonl").write_text(text.replace("1.5", "1.5000001"))


@pytest.mark.parametrize(
    ("spoil", "seen"),
    [
        (spoil_weights, ["center", "predictor.mask_token", "safetensors:step"]),
        (spoil_state, ["state.0.exp_avg", "betas.1"]),
        (spoil_row, ["metrics.jsonl"]),
        (lambda twin: (twin / "results/knn.json").write_text("60.0"), ["results/knn.json"]),
        (lambda twin: shutil.rmtree(twin / "results"), ["knn.json", "missing: results"]),
        (
            lambda twin: shutil.rmtree(twin / "checkpoints/step-00000002"),
            ["only one has", "missing"],
        ),
    ],
)
def test_every_kind_of_difference_is_seen(
    run: Path, spoil: Callable[[Path], object], seen: list[str]
) -> None:
    twin = copied(run)
    spoil(twin)
    found = compare(twin, run)
    for part in seen:
        assert any(part in text for text in found.differences), (part, found.differences)


def test_what_only_a_killed_run_has_is_left_over(run: Path) -> None:
    twin = copied(run)
    (twin / "checkpoints" / ".step-00000004.abc").mkdir()
    (twin / "results" / ".knn.json.abc").touch()
    names = ["checkpoints/.step-00000004.abc", "results/.knn.json.abc"]
    assert compare(twin, run) == (8, 2, 4, [], names)
