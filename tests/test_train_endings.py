"""How a run ends and goes on: signals, second starts, full disks, deleted and damaged files."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sjepa_fast.errors import InputError
from sjepa_fast.evaluate import main as evaluate
from sjepa_fast.runtime.checkpoint import list_checkpoints
from sjepa_fast.runtime.lock import lock_run
from sjepa_fast.runtime.logging import RunLog, read_metrics, recorded_dtype
from sjepa_fast.runtime.signals import SIGNALS
from sjepa_fast.train import main
from tests.tiny import (
    Done,
    call,
    flags,
    metrics,
    run_python,
    start_python,
    weights,
    words_of_run,
)

LENGTHS = {
    "optim.length": 12,
    "log.every": 4,
    "log.panel-every": 6,
    "checkpoint.every": 5,
    "runtime.dtype": "float32",
}
MEASURED = {"ms_per_step", "clips_per_second", "save_ms"}


def call_train(store: Path, run: Path, *more: str) -> Done:
    return call(main, *words_of_run(store, run, *flags(LENGTHS), *more))


@pytest.fixture(autouse=True)
def handled() -> Iterator[None]:
    """Whatever this process ignores (a background job ignores SIGINT), the tests begin alike."""
    before = [signal.signal(number, signal.SIG_DFL) for number in SIGNALS]
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


Act = Callable[[int, Callable[[], None]], None]


@pytest.fixture
def during_step(monkeypatch: pytest.MonkeyPatch) -> Act:
    """Let something happen while a step of the next run is computed."""
    module = importlib.import_module("sjepa_fast.training.loop")

    def during(step: int, act: Callable[[], None]) -> None:
        class Step(module.TrainStep):  # type: ignore[name-defined]
            def __call__(self, ids_B: torch.Tensor) -> Any:
                if int(self.step) + 1 == step:
                    monkeypatch.setattr(module, "TrainStep", Step.__bases__[0])
                    act()
                return super().__call__(ids_B)

        monkeypatch.setattr(module, "TrainStep", Step)

    return during


def send(*numbers: signal.Signals) -> Callable[[], None]:
    return lambda: [os.kill(os.getpid(), number) for number in numbers] and None


@pytest.fixture(scope="module")
def whole(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    done = call_train(store, run)
    assert done.returncode == 0, done.stderr
    assert "training waited for 3 saves, " in done.stdout
    return run


def deterministic(run: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in metrics(run)]


@pytest.mark.parametrize(
    ("step", "number", "code"),
    [(3, signal.SIGINT, 130), (6, signal.SIGTERM, 143), (7, signal.SIGHUP, 129)],
)
def test_a_stopped_run_goes_on_to_the_rows_and_weights_of_one_that_was_not(
    store: Path, whole: Path, tmp_path: Path, during_step: Act, step: int, number: Any, code: int
) -> None:
    run = tmp_path / "run"
    during_step(step, send(number))
    stopped = call_train(store, run)
    assert stopped.returncode == code, stopped.stderr
    assert f"stopped by {number.name}: step {step} is saved" in stopped.stdout
    assert list_checkpoints(run)[-1].step == step
    resumed = call_train(store, run, "--resume", "auto")
    assert resumed.returncode == 0, resumed.stderr
    assert deterministic(run) == deterministic(whole)
    assert [row["step"] for row in metrics(run)] == [0, 4, 5, 6, 8, 10, 12]
    ours, theirs = weights(run), weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert any("save_ms" in row for row in metrics(run))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_run_whose_output_is_gone_is_saved_too(
    store: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """A Ctrl-C also ends the `tee` behind a pipe, a lost connection the terminal."""
    run = tmp_path / "run"
    words = words_of_run(store, run, *flags({**LENGTHS, "optim.length": 4000}))
    process = start_python("-m", "sjepa_fast.train", *words)
    assert process.stdout is not None and process.stderr is not None
    for line in process.stdout:
        if line.startswith("step "):
            break
    process.stdout.close()
    process.send_signal(number)
    assert process.wait(60) == 128 + number, process.stderr.read()
    assert list_checkpoints(run)[-1].step > 0
    process.stderr.close()


def test_nohup_keeps_a_run_going(store: Path, tmp_path: Path, during_step: Act) -> None:
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    during_step(3, send(signal.SIGHUP, signal.SIGINT))
    assert call_train(store, tmp_path / "run", "--optim.length=4").returncode == 0


def test_a_second_ctrl_c_leaves_at_once_and_says_what_is_saved(
    store: Path, tmp_path: Path, during_step: Act
) -> None:
    run = tmp_path / "run"
    during_step(7, send(signal.SIGINT, signal.SIGINT))
    left = call_train(store, run)
    assert left.returncode == 130
    said = left.stderr.strip()
    assert said.startswith("step 5 is saved; python -m sjepa_fast.train --run "), said
    assert said.endswith("--resume auto goes on") and "\n" not in said
    assert list_checkpoints(run)[-1].step == 5, "nothing was saved after it"
    during_step(2, send(signal.SIGINT, signal.SIGINT))
    left = call_train(store, tmp_path / "none")
    assert left.returncode == 130 and left.stderr.strip() == "no step is saved"


def test_ctrl_c_beside_the_steps_says_what_is_saved(
    store: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While data are loaded, and while the report of a finished run is written."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("sjepa_fast.training.inputs.open_clips", interrupt)
        left = call_train(store, run)
    assert (left.returncode, left.stderr) == (130, "no step is saved\n")
    shutil.copytree(whole, run, dirs_exist_ok=True)
    monkeypatch.setattr("sjepa_fast.train.write_report", interrupt)
    left = call_train(store, run, "--resume", "auto")
    assert left.returncode == 130
    assert left.stderr.startswith("step 12 is saved; python -m sjepa_fast.train --run ")


def test_a_run_has_one_owner(store: Path, tmp_path: Path, during_step: Act) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with lock_run(run):
        second = call_train(store, run, "--seed", "1")
    assert second.returncode == 2, second.stderr
    assert f"is in use by process {os.getpid()} on " in second.stderr
    assert not (run / "config.yaml").exists()
    inner: list[Done] = []
    during_step(2, lambda: inner.append(call_train(store, run, "--seed", "1", "--resume=auto")))
    assert call_train(store, run, "--optim.length=4").returncode == 0
    assert inner[0].returncode == 2 and "is in use by" in inner[0].stderr


def test_what_killed_writers_left_is_removed_at_the_next_start(
    store: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    left = [".metrics.jsonl.abcdefg8", "checkpoints/.step-00000007.dropped/model.safetensors"]
    left += ["checkpoints/.step-00000005.a_b2c3d4/state.safetensors", ".curves.png.12345678"]
    left += ["results/.knn-before.json.abcdefgh", ".report.html.12345678"]
    kept = [".note", "checkpoints/.mine", ".notes.txt.mine", "results/.knn-target.json.abcdefgh"]
    for name in (*left, *kept):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("x")
    assert call_train(store, run, "--resume", "auto").returncode == 0
    assert [name for name in left if (run / name).parent.exists() and (run / name).exists()] == []
    assert not list((run / "checkpoints").glob(".step-*"))
    assert all((run / name).exists() for name in kept)


def one_line(done: Done, code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.strip().split("\n")
    for word in words:
        assert word in line


@pytest.mark.parametrize("every", [1, 5], ids=["before a row", "before a save"])
def test_a_run_folder_deleted_while_running_is_one_line(
    store: Path, tmp_path: Path, during_step: Act, every: int
) -> None:
    """At the next row of metrics, which also comes before a save."""
    run = tmp_path / "run"
    during_step(6, lambda: shutil.rmtree(run))
    done = call_train(store, run, f"--log.every={every}", "--log.panel-every=100")
    one_line(done, 1, str(run), "cannot write its metrics", "no step is saved")
    assert not run.exists(), "a deleted run is not begun again"


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("os.fsync", "cannot write the checkpoint of step 10: No space left on device"),
        ("sjepa_fast.train.write_report", "cannot write the report: No space left on device"),
        ("sjepa_fast.runtime.logging.json.dumps", "cannot write its metrics: No space left"),
    ],
)
def test_a_full_disk_is_one_line_and_what_was_saved_stays(
    store: Path,
    tmp_path: Path,
    during_step: Act,
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
    words: str,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    run = tmp_path / "run"
    during_step(7, lambda: monkeypatch.setattr(broken, full))
    done = call_train(store, run)
    monkeypatch.undo()
    last = {"os.fsync": 5, "sjepa_fast.train.write_report": 12}.get(broken, 5)
    one_line(done, 1, words, f"step {last} is saved; python -m sjepa_fast.train --run ")
    assert list_checkpoints(run)[-1].step == last
    resumed = call_train(store, run, "--resume", "auto")
    assert resumed.returncode == 0, resumed.stderr


def test_a_refused_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(
    store: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    state = run / "checkpoints" / "step-00000012" / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[-5] ^= 4
    state.write_bytes(content)
    resumed = call_train(store, run, "--resume", "auto")
    one_line(resumed, 0, "state.safetensors has other content", "going on from step 10")
    assert "resumed at step 10" in resumed.stdout
    assert deterministic(run) == deterministic(whole)
    assert weights(run)["center"].equal(weights(whole)["center"])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("data.json", "", "data.json is not JSON"),
        ("data.json", "[1]", "data.json is not a mapping"),
        ("data.json", "{}", "other clips"),
        ("data.json", None, "data.json: No such file"),
        ("config.yaml", "seed: [", "config.yaml"),
        ("config.yaml", "- 1", "config.yaml"),
        ("metrics.jsonl", '{"step": 1}\n{"loss": 1}\n{"step": 2}\n', "line 2 is not a row"),
        ("metrics.jsonl", '{"step": 1}\n[2]\n{"step": 2}\n', "line 2 is not a row"),
        ("metrics.jsonl", '{"step": "1"}\n{"step": 2}\n', "line 1 is not a row"),
        ("metrics.jsonl", '{"step": 1, "loss": "x"}\n{"step": 2}\n', "line 1 is not a row"),
        ("metrics.jsonl", "[" * 10**5 + "\n{}\n", "line 1 is not a row"),
        ("metrics.jsonl", '{"step": ' + "9" * 5000 + "}\n{}\n", "line 1 is not a row"),
    ],
)
def test_damaged_files_of_a_run_are_one_line(
    store: Path, whole: Path, tmp_path: Path, name: str, content: str | None, words: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    done = call_train(store, run, "--resume", "auto")
    one_line(done, 2, words)


@pytest.mark.parametrize("content", ["", "[]", '{"dtype": []}', "{}", "[" * 10**5, "\xff"])
def test_a_damaged_record_of_the_precision_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "env.json").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"env\.json names no precision"):
        recorded_dtype(tmp_path)


def test_metrics_are_json_whatever_the_values_are(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        log.row(1, {"loss": float("nan"), "lr": 0.5, "norm": float("inf"), "low": -float("inf")})
    text = (tmp_path / "metrics.jsonl").read_text()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    row = json.loads(text, parse_constant=refuse)
    assert row == {"step": 1, "loss": None, "lr": 0.5, "norm": None, "low": None}
    assert read_metrics(tmp_path) == [{"step": 1, "lr": 0.5}]
    old = '{"step": 1, "loss": NaN, "lr": -Infinity, "norm": 1e999}\n{"step": 2, "lr": 0.1}\n\0\0'
    (tmp_path / "metrics.jsonl").write_text(old)
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 2, "lr": 0.1}]
    with RunLog(tmp_path, 2):
        pass
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=refuse)["step"] for line in lines] == [1, 2]


@pytest.mark.slow
def test_paths_need_not_be_utf_8(store: Path, tmp_path: Path) -> None:
    """Run folder and data root with bytes that are no text, in a process with a narrow pipe."""
    own, run = (tmp_path / os.fsdecode(name) for name in (b"st\xffre", b"r\xffn"))
    shutil.copytree(store, own)
    words = words_of_run(own, run, *flags(LENGTHS), "--log.to", "tensorboard", "--optim.length=6")
    for more in ((), ("--resume", "auto")):
        done = run_python("-m", "sjepa_fast.train", *words, *more)
        assert done.returncode == 0, done.stderr
        one_line(done, 0, "TensorBoard")
    assert [row["step"] for row in read_metrics(run)][-1] == 6
    for name in ("data.json", "env.json"):
        json.loads((run / name).read_text(encoding="utf-8"))
    assert (run / "curves.png").stat().st_size > 0
    scored = call(evaluate, "knn", run)
    assert scored.returncode == 0, scored.stderr
    assert list((run / "results").glob("knn*.json"))
