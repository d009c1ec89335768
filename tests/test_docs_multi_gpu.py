"""The commands of docs/multi_gpu.md on two processes (training and fine-tuning are shortened)."""

import json
import shlex
from pathlib import Path

import pytest
from torch.distributed.run import parse_args

from sjepa_fast.config.presets import PRESETS, preset
from sjepa_fast.data.synthetic import write_synthetic_store
from tests.tiny import ROOT, SMALL, blocks, flags, objective, run_python

DOCUMENT = "docs/multi_gpu.md"
TRAIN = {**SMALL, "optim.length": 2, "optim.unit": "steps", "optim.batch-size": 16}
# Seeds that one process trains, and that many steps.
SHORT = {"recipe.hidden": 8, "recipe.unit": "steps", "recipe.length": 2, "recipe.warmup": 1}


def commands(document: str) -> list[list[str]]:
    lines = [line for block in blocks(document, "sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("torchrun")]


def test_restarts_of_the_launcher_resume() -> None:
    train = [words for words in commands(DOCUMENT) if "sjepa_fast.train" in words]
    assert len(train) == 2
    for words in train:
        parsed = parse_args(words[1:])
        assert parsed.max_restarts > 0 and parsed.module
        assert parsed.training_script_args[-2:] == ["--resume", "auto"]
    assert train[0][-9:] == train[1][-9:], "several hosts train as one does"


@pytest.mark.slow
def test_commands_work_one_after_another(tmp_path: Path) -> None:
    write_synthetic_store(tmp_path / "stores" / "ntu60", subjects=2, repetitions=1)
    train, _, knn, _linear, _finetune = commands(DOCUMENT)
    for words, more in ((train, flags(TRAIN)), (knn, [])):
        here = ["--nproc-per-node=2" if "nproc" in word else word for word in words[1:]]
        done = run_python("-m", "torch.distributed.run", *here, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    results = tmp_path / "runs/ntu60/results"
    after = json.loads((results / "knn-before-after.json").read_text())["after"]
    # The score at the end of training, of process 0 alone.
    (file,) = results.glob("knn-target-*.json")
    assert json.loads(file.read_text())["top1_k1"] == after


def test_the_quickstarts_line_is_one_of_them() -> None:
    lines = commands("docs/quickstart.md")
    assert lines and all(words in commands(DOCUMENT) for words in lines)


def test_the_memory_of_a_process_is_computed() -> None:
    largest = 0.0
    for name in (name for name in PRESETS if "-ntu" in name or "-pku" in name):
        model = objective(preset(name))
        trained = sum(x.numel() for x in model.parameters() if x.requires_grad)
        # Float32: all weights; of those that are trained also the gradient and two moments.
        taken = 4 * sum(x.numel() for x in model.parameters()) + 12 * trained
        largest = max(largest, taken / 1e9)
    text = " ".join((ROOT / "docs" / "multi_gpu.md").read_text().split())
    assert f"the largest published preset take {largest:.1f} GB of each GPU" in text
