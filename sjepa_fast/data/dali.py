# SPDX-License-Identifier: Apache-2.0
"""Batches read ahead by the worker processes of an NVIDIA DALI pipeline (optional dependency).

DALI has no operator for a ragged crop of joint sequences, so the reader is an external source: DALI
runs it in its worker processes and keeps batches ready. The pipeline is a CPU one; rows go to the
device as those of `disk` do.
"""

from __future__ import annotations

import ctypes
import importlib.util
import signal
from collections.abc import Generator

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from sjepa_fast.config.schema import DataConfig
from sjepa_fast.data.order import BatchOrder
from sjepa_fast.data.rows import PackedRows, RowReader, worker_failed
from sjepa_fast.errors import InputError

# Option of Linux's prctl: the signal that a process gets when its parent ends.
PR_SET_PDEATHSIG = 1


def require_dali() -> None:
    """Raise InputError with the command that installs DALI, if it is not there."""
    try:
        found = importlib.util.find_spec("nvidia.dali")
    except ModuleNotFoundError:
        found = None
    if found is None:
        is_13 = (torch.version.cuda or "").startswith("13")
        cuda, extra = ("130", "-cu13") if is_13 else ("120", "")
        fix = f"run: pip install nvidia-dali-cuda{cuda} (or: pip install 'sjepa-fast[dali{extra}]')"
        raise InputError("data.backend", "dali needs NVIDIA DALI, which is not installed", fix)


def _set_worker_signals() -> None:
    # Ctrl-C and a closed terminal reach the whole group of processes, but the trainer still needs
    # the batch of its last step. SIGTERM must end a worker, although it inherits the trainer's
    # handler. A worker must also end when the trainer is killed, which DALI's workers do not
    # notice.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class _Source:
    """What DALI calls in its worker processes: the arrays of one step, as batches of one sample.

    An error is returned as an array of text beside a row of zeros, because DALI would print an
    exception.
    """

    def __init__(self, reader: RowReader, order: BatchOrder, steps: range, parallel: bool) -> None:
        self.reader, self.order, self.steps = reader, order, steps
        self.signals_set = not parallel

    def __call__(self, iteration: int) -> tuple[list[np.ndarray], ...]:
        if not self.signals_set:
            _set_worker_signals()
            self.signals_set = True
        if iteration >= len(self.steps):
            raise StopIteration
        failure = ""
        try:
            packed = self.reader.read(self.order.ids(self.steps[iteration]))
        except OSError as error:
            failure = str(error)
            none = torch.zeros(1, dtype=torch.int64)
            rows = torch.zeros(1, self.reader.layout.num_joints, 3, dtype=self.reader.rows_dtype)
            packed = PackedRows(rows, none, none)
        text = np.frombuffer(f"{failure}\n".encode(), np.uint8)
        return tuple([array] for array in (*(part.numpy() for part in packed), text))


def dali_batches(
    reader: RowReader, order: BatchOrder, steps: range, data: DataConfig, device: torch.device
) -> Generator[PackedRows, None, None]:
    """Do what `disk_batches` does; on a CPU, a batch is valid until the next is taken."""
    from nvidia.dali import Pipeline, fn, types

    rows_type = {torch.float16: types.FLOAT16, torch.float32: types.FLOAT}[reader.rows_dtype]
    pipeline = Pipeline(
        batch_size=1,
        num_threads=1,
        device_id=None,
        py_num_workers=max(1, data.workers),
        # Forking is quicker, but DALI refuses it once CUDA is in use.
        py_start_method="spawn" if torch.cuda.is_initialized() else "fork",
    )
    ahead = {"prefetch_queue_depth": data.workers * data.prefetch} if data.workers else {}
    with pipeline:
        outputs = fn.external_source(
            _Source(reader, order, steps, parallel=data.workers > 0),
            num_outputs=4,
            batch=True,
            parallel=data.workers > 0,
            dtype=[rows_type, types.INT64, types.INT64, types.UINT8],
            **ahead,
        )
        pipeline.set_outputs(*outputs)
    pipeline.build()
    for _ in steps:
        try:
            parts = [from_dlpack(output[0]) for output in pipeline.run()]
        except RuntimeError as error:
            raise worker_failed(str(error).strip().splitlines()[-1]) from error
        failure = bytes(parts.pop().tolist()).decode().strip()
        if failure:
            raise OSError(failure)
        if device.type == "cuda":
            # DALI reuses its memory while a copy from it may still be under way.
            parts = [torch.empty_like(part, pin_memory=True).copy_(part) for part in parts]
        yield PackedRows(*parts)
