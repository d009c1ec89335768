"""The other objectives through the trainer; S-JEPA's way through it is in test_train.py."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from sjepa_fast.config.files import parse_train
from sjepa_fast.data.synthetic import write_synthetic_store
from sjepa_fast.train import train

ROOT = Path(__file__).parent.parent
KINDS = ("skeleton2vec", "mamp", "skeletonmae")
# Options that are off in the presets, each through the whole trainer once.
MORE = {
    "skeleton2vec": ["--objective.legacy-tube-layout", "--data.sampling", "index"],
    "mamp": ["--mask.num-masked-views", "2"],
    "skeletonmae": ["--objective.target-norm", "temporal", "--view.form", "axes"],
}
TINY = {
    "data.split": "xsub",
    "data.bodies": "2",
    "data.frames": "16",
    "data.crop-min-frames": "8",
    "model.width": "32",
    "model.heads": "1",
    "model.depth": "2",
    "model.predictor-depth": "1",
    "mask.tube-length": "2",
    "objective.target-layers": "2",
    "optim.batch-size": "8",
    "optim.length": "6",
    "optim.warmup": "2",
    "log.every": "2",
    "log.panel-every": "3",
    "log.knn-every": "0",
    "checkpoint.every": "3",
    "runtime.device": "cpu",
    "runtime.dtype": "float32",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "synthetic"
    write_synthetic_store(path, subjects=4, repetitions=1)
    return path


def arguments(kind: str, store: Path, run: Path, *more: str) -> list[str]:
    flags = [part for key, value in TINY.items() for part in (f"--{key}", value)]
    flags += ["--log.no-tensorboard"]
    flags += ["--view.tilt", "0", *MORE[kind]]
    return [f"{kind}-nucla", "--data.root", str(store), "--run", str(run), *flags, *more]


def call(*words: str) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "checkpoints" / "step-00000006" / "model.safetensors")


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][1:]


@pytest.mark.parametrize("kind", KINDS)
def test_objective_trains_scores_and_resumes(kind: str, store: Path, tmp_path: Path):
    run = tmp_path / kind
    call("-m", "sjepa_fast.train", *arguments(kind, store, run))
    found = rows(run)
    follows = kind == "skeleton2vec"
    assert [row["step"] for row in found] == [2, 3, 4, 6]
    assert all(("momentum" in row) == follows for row in found)
    assert "target_entropy" not in found[-1]
    assert found[-1]["effective_rank"] > 1 and found[-1]["collapsed"] == 0
    assert (run / "results" / "knn-before-after.json").exists()
    assert (run / "mask.png").stat().st_size > 0
    whole = weights(run)
    assert any(name.startswith("target_encoder") for name in whole) == follows
    assert "center" not in whole
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    assert train(parse_train(arguments(kind, store, run, "--resume", "auto"))) == 0
    for name, tensor in weights(run).items():
        assert torch.equal(tensor, whole[name]), name
    before = safetensors.torch.load_file(
        run / "checkpoints" / "step-00000003" / "model.safetensors"
    )
    moved = [name for name in whole if not torch.equal(whole[name], before[name])]
    fixed = [name for name in whole if "whiten" in name]
    assert sorted(moved) == sorted(set(whole) - set(fixed))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["skeleton2vec", "mamp"])
def test_two_processes_follow_one(kind: str, store: Path, tmp_path: Path):
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2"]
    launcher += [f"--master-port={29551 + KINDS.index(kind)}", "-m", "--", "sjepa_fast.train"]
    call(*launcher, *arguments(kind, store, tmp_path / "two"))
    assert train(parse_train(arguments(kind, store, tmp_path / "one"))) == 0
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-4)
    ours = weights(tmp_path / "two")
    for name, tensor in weights(tmp_path / "one").items():
        # Sums are added in another order, and AdamW divides by tiny second moments early on.
        torch.testing.assert_close(ours[name], tensor, rtol=2e-3, atol=2e-4, msg=name)
