"""Training from a store that stays on disk: equal weights, clean ends, one-line errors."""

import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from sjepa_fast.data.store import open_store
from tests.tiny import (
    blocks,
    flags,
    metrics,
    start_python,
    trained,
    wait_for_row,
    weights,
    words_of_run,
)

DALI = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")
BACKENDS = [
    "disk",
    pytest.param("dali", marks=pytest.mark.skipif(not DALI, reason="NVIDIA DALI is not installed")),
]
FLAGS = flags({"data.split": "xsub", "data.frames": 8, "data.crop-min-frames": 4})
FLAGS += flags({"data.workers": 1, "optim.warmup": 2})


def start(store: Path, run: Path, *more: str) -> subprocess.Popen[str]:
    """Start a run as the first process of a group of its own."""
    words = words_of_run(store, run, *FLAGS, *more)
    return start_python("-m", "sjepa_fast.train", *words, start_new_session=True)


def end(process: subprocess.Popen[str]) -> str:
    """Wait for the run, and return its errors; none of its processes may be left."""
    errors = process.communicate(timeout=300)[1]
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    return errors


def losses(run: Path) -> dict[int, float]:
    return {row["step"]: row.get("loss", row.get("knn")) for row in metrics(run)}


@pytest.fixture(scope="module")
def resident(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "resident"
    return trained(store, run, *FLAGS, "--optim.length", "8")


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_interrupted_run_ends_with_the_resident_weights(
    store: Path, resident: Path, tmp_path: Path, backend: str
) -> None:
    arguments = (store, tmp_path / "run", "--data.backend", backend, "--optim.length", "8")
    process = start(*arguments)
    wait_for_row(tmp_path / "run", 2, process)
    # As a terminal does; the workers are of the same group.
    os.killpg(process.pid, signal.SIGINT)
    errors = end(process)
    assert process.returncode == 130, errors
    stopped = max(losses(tmp_path / "run"))
    assert 2 <= stopped < 8
    resumed = start(*arguments, "--resume", "auto", "--data.prefetch", "1")
    errors = end(resumed)
    assert resumed.returncode == 0, errors
    assert losses(tmp_path / "run") == losses(resident)
    ours, theirs = weights(tmp_path / "run", 8), weights(resident, 8)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(tensor) for name, tensor in theirs.items())
    scores = [run / "results" / "knn-before-after.json" for run in (tmp_path / "run", resident)]
    assert scores[0].read_bytes() == scores[1].read_bytes()


@pytest.mark.slow
def test_the_documented_commands_run(store: Path, tmp_path: Path) -> None:
    documented = blocks("docs/data-backends.md", "sh")
    lines = [shlex.split(line) for block in documented for line in block.splitlines()]
    trained = [words[3:] for words in lines if words[:3] == ["python", "-m", "sjepa_fast.train"]]
    assert len(trained) == 2
    for words in trained:
        place = words.index("--run") + 1
        run = tmp_path / words.pop(place)
        del words[place - 1]
        process = start(store, run, *words, "--optim.length", "3")
        errors = end(process)
        missing = "dali" in words and not DALI
        assert process.returncode == (2 if missing else 0), errors
        assert run.exists() != missing, "a refused run leaves nothing"


def test_sigterm_to_the_whole_group_saves_and_stops(store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(store, run, "--data.backend", "disk", "--optim.length", "5000")
    wait_for_row(run, 2, process)
    os.killpg(process.pid, signal.SIGTERM)
    errors = end(process)
    assert process.returncode == 143, errors
    last = max(losses(run))
    assert (run / "checkpoints" / f"step-{last:08d}" / "model.safetensors").exists()


def test_a_store_shortened_during_the_run_is_one_line(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "store")
    more = ("--data.backend", "disk", "--optim.length", "5000", "--checkpoint.every", "2")
    process = start(tmp_path / "store", tmp_path / "run", *more)
    wait_for_row(tmp_path / "run", 3, process)
    rows = open_store(store).joints.nbytes
    os.truncate(tmp_path / "store" / "joints.npy", rows // 2)
    (line,) = end(process).splitlines()
    assert process.returncode == 1
    assert line.startswith(str(tmp_path / "store" / "joints.npy")) and "--resume auto" in line
    assert list((tmp_path / "run" / "checkpoints").glob("step-0*")), "what was saved stays"
