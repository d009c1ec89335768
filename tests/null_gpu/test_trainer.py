"""The trainer on a GPU: signals in a capture, feeds, resumed runs, and a card that is too small."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sjepa_fast.config.files import parse_train
from sjepa_fast.train import train
from tests.null_gpu import gpu
from tests.null_gpu.build import build, environment
from tests.null_gpu.steps import WARMUP
from tests.tiny import metrics, words_of_run

DALI = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")
BACKENDS = [
    "resident",
    "disk",
    pytest.param("dali", marks=pytest.mark.skipif(not DALI, reason="NVIDIA DALI is not installed")),
]
LENGTH = 12
# Logged at the end alone: what lies between two replays is then the feed's.
# Bodies that are present would be counted by the card.
COUNTED = "--data.no-skip-empty-bodies"
EAGER = ("--compile=off",)
QUIET = (COUNTED, f"--optim.length={LENGTH}", "--log.every=100", "--log.panel-every=100")


@pytest.fixture(autouse=True)
def nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Loss and scores are zero; the pictures at the end would need what is not there."""
    monkeypatch.setattr("sjepa_fast.train.write_report", lambda *_: [])
    with gpu.zeros_read():
        yield


def run(store: Path, folder: Path, *more: str) -> int:
    words = words_of_run(store, folder, "--runtime.device=auto", *EAGER, *more)
    return train(parse_train(words))


def replayed(record: gpu.Record) -> bool:
    """Whether a record is the replay of a step; a trial before training has one node."""
    return record.kind == "graph_launch" and record.sizes[0] > 1


def last_step(folder: Path) -> int:
    return int(max((folder / "checkpoints").glob("step-*")).name.removeprefix("step-"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_to_its_end(store: Path, tmp_path: Path, backend: str) -> None:
    assert run(store, tmp_path / "run", f"--data.backend={backend}", *QUIET) == 0
    assert gpu.problems() == []
    assert last_step(tmp_path / "run") == LENGTH
    assert metrics(tmp_path / "run")[-1]["step"] == LENGTH
    records = gpu.records()
    launches = [at for at, r in enumerate(records) if replayed(r)]
    assert len(launches) == LENGTH - WARMUP
    between = records[launches[0] + 1 : launches[3]]
    assert not [r for r in between if r.kind == "sync"], "a replayed step waits for the host"
    host = {r.name for r in between if r.kind == "copy" and r.name != "DtoD"}
    assert host == (set() if backend == "resident" else {"HtoD pinned"})


def test_a_signal_during_the_capture_saves_and_stops(store: Path, tmp_path: Path) -> None:
    sent: list[str] = []

    def send(launch: gpu.Launch) -> None:
        if not sent and torch.cuda.is_current_stream_capturing():
            sent.append(launch.name)
            os.kill(os.getpid(), signal.SIGTERM)

    with gpu.launch_hook(send):
        assert run(store, tmp_path / "run", *QUIET) == 143
    assert sent and gpu.problems() == []
    assert last_step(tmp_path / "run") == WARMUP + 1
    assert run(store, tmp_path / "run", *QUIET, "--resume=auto") == 0
    assert last_step(tmp_path / "run") == LENGTH


@pytest.mark.parametrize("begun_on", ["cpu", "gpu"])
def test_a_run_is_resumed_on_a_gpu(
    store: Path, tmp_path: Path, begun_on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = (*QUIET, f"--checkpoint.every={LENGTH // 2}", "--checkpoint.keep=2")
    with monkeypatch.context() as here:
        if begun_on == "cpu":
            here.setattr("torch.cuda.is_available", lambda: False)
        assert run(store, tmp_path / "run", *half) == 0
    assert bool(gpu.records()) is (begun_on == "gpu")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{LENGTH:08d}")
    gpu.reset()
    assert run(store, tmp_path / "run", *half, "--resume=auto") == 0
    assert gpu.problems() == []
    replays = [r for r in gpu.records() if replayed(r)]
    # The first is verified, eagerly.
    assert len(replays) == LENGTH // 2 - 1 - WARMUP, "the resumed steps were not a graph"


# Runs the trainer, whose pictures would need what is not computed here.
TRAIN = """
import sys
import sjepa_fast.train as trainer
trainer.write_report = lambda *_: []
trainer.main(sys.argv[1:])
"""


def in_child(store: Path, folder: Path, gib: float, *more: str) -> subprocess.CompletedProcess[str]:
    words = words_of_run(store, folder, "--runtime.device=cuda", *EAGER, *QUIET, *more)
    return subprocess.run(
        [sys.executable, "-c", TRAIN, *words],
        env=environment(build(), gib=gib, zeros=True),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_batch_too_large_for_the_card_is_one_line_with_one_that_fits(
    store: Path, tmp_path: Path
) -> None:
    wide = ("--data.frames=120", "--data.crop-min-frames=64", "--model.width=256")
    large = (*wide, "--model.heads=8", "--model.depth=8", "--optim.length=5")
    refused = in_child(store, tmp_path / "large", 3.0, *large, "--optim.batch-size=112")
    assert refused.returncode == 2, refused.stderr
    # The allocator of newer versions of torch says more, in lines that begin with its time.
    (line,) = [x for x in refused.stderr.strip().splitlines() if not x.startswith("[W")]
    assert "112 clips per step do not fit into the 3072 MiB" in line
    fitting = line.rpartition("--optim.batch-size ")[2]
    assert 0 < int(fitting) < 112
    taken = in_child(store, tmp_path / "fits", 3.0, *large, f"--optim.batch-size={fitting}")
    assert taken.returncode == 0, taken.stderr
