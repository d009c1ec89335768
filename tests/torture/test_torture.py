"""The short form of `make torture`; what decides about equality is tested to see differences."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.tiny import run_python, trained
from tests.torture.compare import compare


@pytest.mark.slow
def test_killed_runs_end_like_the_one_that_nobody_killed(tmp_path: Path) -> None:
    out = tmp_path / "torture.json"
    words = ["--kills", "24", "--objectives", "sjepa", "mamp", "--out", out]
    done = run_python("-m", "tests.torture", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert {(row["objective"], row["processes"]) for row in rows} == {
        (kind, count) for kind in ("sjepa", "mamp") for count in (1, 2)
    }
    for row in rows:
        assert row["kills"] >= 6 and row["resumes"] + row["restarts"] >= 3, row
        assert row["tensors"] > 100 and row["rows"] > 0 and row["files"] >= 5, row


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return trained(store, folder, "--optim.length=2", "--runtime.dtype=float32")


def test_every_kind_of_difference_is_seen(run: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    shutil.copytree(run, twin)
    for text in [*twin.glob("*.yaml"), *twin.glob("*.json")]:
        text.write_text(text.read_text().replace(str(run), str(twin)))
    found = compare(twin, run)
    assert found.differences == [] and found.leftovers == []
    assert found.tensors > 100 and found.rows == 3 and found.files >= 5

    (folder,) = twin.glob("checkpoints/step-*")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    # The sign of a zero: equal as a number, but not to the bit.
    weights["center"] = torch.where(weights["center"] == 0, -0.0, weights["center"])
    weights["predictor.mask_token"].view(torch.int32)[3] ^= 1
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    state = torch.load(folder / "state.pt", weights_only=True)
    state["optimizer"]["state"][0]["exp_avg"][0] += 1
    torch.save(state, folder / "state.pt")
    metrics = (twin / "metrics.jsonl").read_text().splitlines()
    row = json.loads(metrics[-1])
    metrics[-1] = json.dumps(row | {"loss": row["loss"] + 1e-7, "ms_per_step": 1e9})
    (twin / "metrics.jsonl").write_text("\n".join(metrics) + "\n")
    (twin / "train_ids.txt").unlink()
    (twin / "results" / ".knn.json.abc").touch()
    found = compare(twin, run)
    seen = " ".join(found.differences)
    for name in ("predictor.mask_token", "state.0.exp_avg", "metrics.jsonl", "train_ids.txt"):
        assert name in seen, name
    assert len(found.differences) == 5, "train_ids.txt is missed as a text and as a file"
    assert found.leftovers == ["results/.knn.json.abc"]


def test_a_measured_time_is_no_difference(run: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    shutil.copytree(run, twin)
    rows = [json.loads(line) for line in (twin / "metrics.jsonl").read_text().splitlines()]
    slower = [row | {"ms_per_step": 1.0, "clips_per_second": 2.0, "gpu_mb": 3.0} for row in rows]
    (twin / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in slower))
    found = compare(twin, run)
    assert not [name for name in found.differences if "metrics" in name]
