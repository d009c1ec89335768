"""Every command of docs/protocols.md, in order, on tiny data (training runs are shortened)."""

import shlex
from pathlib import Path
from typing import get_args

import pytest
import torch

from sjepa_fast import evaluate
from sjepa_fast.config.files import parse_train
from sjepa_fast.config.presets import preset
from sjepa_fast.config.schema import Pool
from sjepa_fast.data.store import open_store
from sjepa_fast.data.synthetic import write_synthetic_store
from sjepa_fast.evaluation.features import pool_tokens
from sjepa_fast.evaluation.protocols import PROTOCOLS
from sjepa_fast.skeletons import KINECT20, NTU25, SkeletonLayout
from sjepa_fast.train import train
from tests.tiny import ROOT, SMALL, as_kinect, blocks, flags

SIZES = {"data.split": "xsub", "data.root": "store", "optim.length": 2, "optim.batch-size": 16}
TINY = flags({**SMALL, **SIZES})
SHORT = ["--recipe.length", "2", "--recipe.warmup", "1", "--recipe.hidden", "8"]


def commands() -> list[list[str]]:
    found = blocks("docs/protocols.md", "sh")
    lines = [shlex.split(line) for block in found[1:] for line in block.splitlines()]
    assert all(words[:2] == ["python", "-m"] for words in lines)
    return [words[2:] for words in lines]


def test_commands_work_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = write_synthetic_store(tmp_path / "store", subjects=2, repetitions=1)
    as_kinect(open_store(store.root), tmp_path / "stores" / "other")
    assert train(parse_train(["sjepa-demo", "--run", "runs/demo", *TINY])) == 0
    protocols = set()
    for module, *arguments in commands():
        if module == "sjepa_fast.train":
            assert train(parse_train([*arguments, *TINY])) == 0
            continue
        assert module == "sjepa_fast.evaluate"
        protocols.add(arguments[0])
        short = SHORT if arguments[0] in ("finetune", "supervised", "semi", "transfer") else []
        assert evaluate.run([*arguments, *short]) == 0, arguments
    assert protocols == set(PROTOCOLS)
    results = {file.stem for file in (tmp_path / "runs/demo/results").glob("*.json")}
    assert {
        "finetune-random-synthetic-xsub",
        "semi0.1-balanced-target-synthetic-xsub",
        "transfer-target-kinect-xsub",
        "linear-target-mean-augment-synthetic-xsub",
        "ensemble-linear-target-joint-synthetic-xsub",
        "knn-raw-pca-synthetic-xsub",
        "knn-target-mean-checkpoints-synthetic-xsub",
    } <= results
    assert "linear-random-pyramid-synthetic-xsub" not in results, "--no-baselines"


@pytest.mark.parametrize(
    ("name", "layout", "column"), [("nucla", KINECT20, 3), ("ntu60-xsub", NTU25, 4)]
)
def test_widths_are_those_of_the_pools(name: str, layout: SkeletonLayout, column: int) -> None:
    config = preset(f"sjepa-{name}")
    segments = config.data.frames // config.model.segment_length
    tokens = torch.zeros(1, 1, segments * layout.num_joints, config.model.width)
    rows = [row.split("|") for row in (ROOT / "docs/protocols.md").read_text().splitlines()]
    stated = {row[1].strip(" `"): row[column + 1] for row in rows if len(row) == 7}
    for pool in get_args(Pool):
        width = pool_tokens(tokens, pool, layout.num_joints).shape[1]
        assert stated[pool].strip() == f"{width:,}", pool
