# SPDX-License-Identifier: Apache-2.0
"""Batches read ahead by the worker processes of torch's DataLoader, into pinned memory."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from sjepa_fast.config.schema import DataConfig
from sjepa_fast.data.order import BatchOrder
from sjepa_fast.data.rows import PackedRows, RowReader, worker_failed

# Seconds that a worker stays alive after SIGTERM, so that the trainer can finish its step and save.
GRACE = 30


class _Batches(Dataset[PackedRows | str]):
    """One item is one whole batch, or the message of the error.

    If a worker raised the error, its traceback would become part of the message.
    """

    def __init__(self, reader: RowReader) -> None:
        self.reader = reader

    def __getitem__(self, ids_B: np.ndarray) -> PackedRows | str:
        try:
            return self.reader.read(ids_B)
        except OSError as error:
            return str(error)


def _ignore_signals(_: int) -> None:
    # Ctrl-C, a closed terminal and a cluster's SIGTERM reach the whole group of processes, but the
    # trainer still needs the batch of its last step; it then saves and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))


@contextlib.contextmanager
def _keep_child_handler() -> Iterator[None]:
    # When a worker dies, the loader's handler raises in the middle of whatever the trainer does;
    # with the old handler the death is reported when the next batch is due.
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)


def disk_batches(
    reader: RowReader, order: BatchOrder, steps: range, data: DataConfig, device: torch.device
) -> Generator[PackedRows, None, None]:
    """Yield the packed rows of each step's batch; closing the generator ends the workers.

    Batches for a GPU come in pinned memory, so that copies need not wait. Raises OSError if the
    store cannot be read any more, or a worker was killed.
    """
    batches: DataLoader[Any] = DataLoader(
        _Batches(reader),
        sampler=(order.ids(step) for step in steps),
        batch_size=None,
        num_workers=data.workers,
        prefetch_factor=data.prefetch if data.workers else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=_ignore_signals,
        # A generator of its own: the loader must not draw from the one that initialises weights.
        generator=torch.Generator(),
    )
    with _keep_child_handler():
        ready = iter(batches)
    while True:
        try:
            batch = next(ready, None)
        except (RuntimeError, OSError, EOFError) as error:
            # A worker was killed: the loader noticed it, or got only a part of a batch.
            raise worker_failed(" ".join(str(error).split())) from error
        if batch is None:
            return
        if isinstance(batch, str):
            raise OSError(batch)
        yield batch
