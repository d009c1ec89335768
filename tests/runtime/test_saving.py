"""Saves in a thread, as on a GPU: never two at once, errors surface, the end waits."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sjepa_fast.runtime import saving
from sjepa_fast.runtime.checkpoint import Contents, contents, list_checkpoints
from sjepa_fast.runtime.manifest import read_tensors
from sjepa_fast.runtime.saving import Saver, what_is_kept


class Copies:
    """In place of pinned memory: copies on the host, ready at once."""

    class Ready:
        def synchronize(self) -> None:
            """Nothing to wait for."""

    def __init__(self, whole: Contents) -> None:
        self.whole = whole

    def copy(self, step: int, groups: Any, recent_K3: Tensor | None) -> tuple[Contents, Ready]:
        weights = {name: tensor.clone() for name, tensor in self.whole.weights.items()}
        assert self.whole.state is not None
        state = {name: tensor.clone() for name, tensor in self.whole.state.items()}
        return Contents(step, weights, state, groups), self.Ready()

    def check(self, now: Contents) -> None:
        changed = saving._replaced(self.whole.weights, now.weights)
        if changed:
            raise RuntimeError(changed)


def threaded(run: Path) -> Saver:
    model = nn.Linear(4, 4)
    saver = Saver(run, 2, model, torch.optim.AdamW(model.parameters()))
    saver.spare = Copies(contents(0, model, saver.optimizer))  # type: ignore[assignment]
    return saver


def test_saves_do_not_overlap_and_leaving_waits_for_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, most = [0], [0]
    write = saving.write_checkpoint

    def slowly(*arguments: object) -> object:
        writing[0] += 1
        most[0] = max(most[0], writing[0])
        time.sleep(0.1)
        writing[0] -= 1
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(saving, "write_checkpoint", slowly)
    with threaded(tmp_path) as saver:
        saver.save(1)
        assert list_checkpoints(tmp_path) == [], "training goes on meanwhile"
        saver.save(2)
        assert [saved.step for saved in list_checkpoints(tmp_path)] == [1]
    assert [saved.step for saved in list_checkpoints(tmp_path)] == [1, 2] and most == [1]
    assert saver.stalls[0] < 0.1 <= saver.stalls[1], "the second waited for the first"
    (name, stall), *others = saver.last_stall().items()
    assert name == "save_ms" and stall == pytest.approx(1000 * sum(saver.stalls)) and not others
    assert saver.last_stall() == {}


def test_what_is_written_is_what_was_there_at_the_save(tmp_path: Path) -> None:
    with threaded(tmp_path) as saver:
        before = {name: tensor.clone() for name, tensor in saver.model.state_dict().items()}
        saver.save(1)
        with torch.no_grad():
            saver.model.weight.zero_()  # type: ignore[union-attr, operator]
    (saved,) = list_checkpoints(tmp_path)
    stored, _ = read_tensors(saved.path, "model.safetensors")
    assert torch.equal(stored["weight"], before["weight"])


def test_weights_that_were_replaced_are_an_error_and_not_saved_as_they_were(tmp_path: Path) -> None:
    saver = threaded(tmp_path)
    saver.save(1)
    saver.finish()
    saver.model.weight = nn.Parameter(torch.zeros(4, 4))
    saver.save(2)
    with pytest.raises(RuntimeError, match="weight"):
        saver.finish()
    assert [saved.step for saved in list_checkpoints(tmp_path)] == [1]


def test_what_was_replaced_is_named() -> None:
    a, b = torch.zeros(2), torch.ones(3)
    assert saving._replaced({"a": a, "b": b}, {"b": b, "a": a[:]}) == ""
    assert saving._replaced({"a": a, "b": b}, {"a": a, "b": b.clone()}) == "b"
    assert saving._replaced({"a": a}, {"a": a, "new": b}) == "new"
    assert saving._replaced({"a": a, "gone": b}, {"a": a}) == "gone"


def test_an_error_of_the_thread_surfaces_at_the_next_save_or_at_the_end(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for act in (lambda saver: saver.save(2), lambda saver: saver.finish()):
        run.mkdir()
        saver = threaded(run)
        shutil.rmtree(run)
        saver.save(1)
        with pytest.raises(OSError, match=r"checkpoint of step 1: No such file.*no step is saved"):
            act(saver)
        assert saver.thread is None


def test_errors_of_another_kind_are_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a device error")

    monkeypatch.setattr(saving, "write_checkpoint", broken)
    with pytest.raises(RuntimeError, match="a device error"), threaded(tmp_path) as saver:
        saver.save(1)


def test_the_error_of_the_block_is_the_one_that_is_raised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(FloatingPointError, match="loss"), threaded(run) as saver:
        shutil.rmtree(run)
        saver.save(1)
        raise FloatingPointError("loss is nan")
    assert "cannot write the checkpoint of step 1" in capsys.readouterr().err


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Event()
    monkeypatch.setattr(saving, "write_checkpoint", lambda *_: held.wait(60))
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), threaded(tmp_path) as saver:
        saver.save(1)
        raise KeyboardInterrupt
    assert time.monotonic() - began < 30 and saver.thread is not None and saver.thread.daemon
    held.set()


def test_what_is_kept_names_the_newest_step_and_the_command(tmp_path: Path) -> None:
    run = tmp_path / "a run"
    run.mkdir()
    assert what_is_kept(run) == "no step is saved"
    with threaded(run) as saver:
        saver.save(7)
    command = f"python -m sjepa_fast.train --run '{run}' --resume auto"
    assert what_is_kept(run) == f"step 7 is saved; {command} goes on"


@pytest.mark.parametrize(
    ("variables", "called", "command"),
    [
        ({}, "/usr/bin/sjepa", "sjepa train"),
        ({}, "train.py", "python -m sjepa_fast.train"),
        (
            {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"},
            "train.py",
            "torchrun --nproc-per-node=4 -m -- sjepa_fast.train",
        ),
        (
            {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"},
            "train.py",
            "python -m sjepa_fast.train",
        ),
    ],
    ids=["sjepa", "module", "torchrun", "several hosts"],
)
def test_the_command_that_goes_on_is_called_as_the_run_was(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    called: str,
    command: str,
) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", [called])
    with threaded(tmp_path) as saver:
        saver.save(7)
    assert f"; {command} --run {tmp_path} --resume auto goes on" in what_is_kept(tmp_path)


def test_contents_are_not_copied() -> None:
    model = nn.Linear(2, 2)
    whole = contents(1, model, torch.optim.AdamW(model.parameters()))
    assert whole.weights["weight"].data_ptr() == model.weight.data_ptr()
