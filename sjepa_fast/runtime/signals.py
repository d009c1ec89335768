# SPDX-License-Identifier: Apache-2.0
"""Signals that ask a run to save and stop: Ctrl-C, a scheduler's SIGTERM, a closed terminal."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import torch

from sjepa_fast.runtime.dist import World

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """Notes the signals that ask for a stop, while the block lasts; the loop decides when it stops.

    What was ignored when the process began stays ignored: a background job's Ctrl-C, the SIGHUP of
    `nohup`. A Ctrl-C after another signal raises KeyboardInterrupt at once, with `last_words()` as
    its message; but not under torchrun, which sends a terminal's Ctrl-C on to processes that have
    had it.
    """

    def __init__(self, last_words: Callable[[], str]) -> None:
        self.last_words = last_words
        self.heard: signal.Signals | None = None
        self.stop: signal.Signals | None = None  # agreed by all processes
        self.before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        """Take over the signals that are not ignored; only a main thread can."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *raised: object) -> None:
        """Give the signals back."""
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, _: object) -> None:
        alone = "TORCHELASTIC_RUN_ID" not in os.environ
        if number == signal.SIGINT and self.heard is not None and alone:
            raise KeyboardInterrupt(self.last_words())
        self.heard = self.heard or signal.Signals(number)

    def agree(self, world: World, device: torch.device) -> None:
        """Let all processes stop at the same step if one of them was asked to; all must call it."""
        if world.size == 1:
            self.stop = self.heard
            return
        heard = torch.tensor([float(self.heard == number) for number in SIGNALS], device=device)
        counts = world.sum_(heard).tolist()
        asked = (number for number, count in zip(SIGNALS, counts, strict=True) if count)
        self.stop = next(asked, None)

    @property
    def exit_code(self) -> int:
        """128 and the number of the signal that stopped the run (130, 143 or 129); else 0."""
        return 0 if self.stop is None else 128 + self.stop
