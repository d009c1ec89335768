"""Every command of docs/protocols.md, in order, on tiny data (training runs are shortened)."""

import shlex
from pathlib import Path

import pytest

from sjepa_fast import evaluate
from sjepa_fast.config.files import parse_train
from sjepa_fast.data.store import open_store
from sjepa_fast.data.synthetic import write_synthetic_store
from sjepa_fast.evaluation.protocols import PROTOCOLS
from sjepa_fast.train import train
from tests.tiny import SMALL, as_kinect, blocks, flags

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
        short = SHORT if arguments[0] in ("finetune", "semi", "transfer") else []
        assert evaluate.run([*arguments, *short]) == 0, arguments
    assert protocols == set(PROTOCOLS)
    results = {file.stem for file in (tmp_path / "runs/demo/results").glob("*.json")}
    assert {
        "finetune-random-synthetic-xsub",
        "semi0.1-balanced-target-synthetic-xsub",
        "transfer-target-kinect-xsub",
        "linear-target-mean-augment-synthetic-xsub",
        "ensemble-linear-target-joint-synthetic-xsub",
    } <= results
