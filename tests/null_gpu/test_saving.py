"""Checkpoints of a GPU run: the training thread enqueues copies, waits for nothing, and goes on."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.steps import ntu_like_clips
from sjepa_fast.config.schema import replace
from sjepa_fast.runtime.checkpoint import list_checkpoints, verify
from sjepa_fast.runtime.saving import Saver
from sjepa_fast.training.step import TrainStep
from tests.null_gpu import gpu
from tests.null_gpu.steps import GPU, WARMUP, call, configured, make_step
from tests.tiny import STEP_CONFIG

CONFIG = configured(replace(STEP_CONFIG, data={"bodies": 2}), compiled="off", batch=4)


def captured_step() -> TrainStep:
    step = make_step(CONFIG, ntu_like_clips(16, GPU), torch.float32)
    for _ in range(WARMUP + 1):
        call(step)
    return step


def test_a_save_makes_the_training_thread_wait_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = captured_step()
    written: list[Any] = []
    with Saver(tmp_path, 1, step.model, step.optimizer) as saver:
        monkeypatch.setattr(
            saver, "_write", lambda whole, keep, ready: written.append((whole, ready))
        )
        gpu.reset()
        saver.save(1)
        records = gpu.records()
        assert saver.thread is not None
    assert gpu.problems() == []
    assert [r.name for r in records if r.kind == "sync"] == []
    copies = [r for r in records if r.kind == "copy"]
    assert [r.name for r in copies if r.name != "DtoD"] == ["DtoH pinned"]
    ((whole, _),) = written
    saved = sum(t.nbytes for t in (*whole.weights.values(), *whole.state.values()))
    (to_host,) = [r for r in copies if r.name == "DtoH pinned"]
    assert saved <= to_host.sizes[0] <= 1.5 * saved + 64 * 1000
    within = [r for r in records if r.stream == to_host.stream and r is not to_host]
    assert within == [], "the transfer has a stream of its own"
    assert all(t.device.type == "cpu" for t in whole.weights.values())
    assert not [r for r in records if r.kind in ("malloc", "free")]


def test_a_thread_writes_whole_checkpoints_one_at_a_time(tmp_path: Path) -> None:
    step = captured_step()
    with Saver(tmp_path, 2, step.model, step.optimizer) as saver:
        for number in (1, 2, 3):
            saver.save(number)
            assert saver.thread is not None and saver.thread is not threading.current_thread()
    assert [saved.step for saved in list_checkpoints(tmp_path)] == [2, 3]
    for saved in list_checkpoints(tmp_path):
        verify(saved)
    assert gpu.problems() == []
