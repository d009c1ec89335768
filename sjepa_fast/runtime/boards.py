# SPDX-License-Identifier: Apache-2.0
"""Where a run's metrics go beside `metrics.jsonl`: TensorBoard, Weights & Biases, trackio.

W&B and trackio have the same calls. A board gets the rows of `metrics.jsonl` as they are written,
and a run that is resumed goes on in the same place. Accounts, servers and offline modes are theirs
to configure, by their own commands and environment variables.
"""

from __future__ import annotations

import contextlib
import importlib
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from sjepa_fast.errors import InputError
from sjepa_fast.extras import require
from sjepa_fast.names import printable, say
from sjepa_fast.runtime.files import write_text

PROJECT = "sjepa_fast"


class Board(Protocol):
    """What takes rows of metrics."""

    def add(self, step: int, values: dict[str, float]) -> None:
        """Take the metrics of a step."""

    def close(self) -> None:
        """Write what is left."""


class _TensorBoard:
    def __init__(self, run: Path, start_step: int, _config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow import, only when wanted

        # It drops what an interrupted run has written of steps that come again.
        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=start_step)

    def add(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _Tracker:
    """W&B, or what has its calls."""

    def __init__(self, module: str, **words: object) -> None:
        self.module = importlib.import_module(module)
        self.module.init(project=PROJECT, resume="allow", **words)

    def add(self, step: int, values: dict[str, float]) -> None:
        self.module.log(values, step=step)

    def close(self) -> None:
        self.module.finish()


def _identity(run: Path, start_step: int) -> str:
    """Return what tells a run from others of its name: drawn when it begins, kept in its folder."""
    file = run / "board_id.txt"
    if start_step == 0 or not file.is_file():
        write_text(file, secrets.token_hex(4))
    return file.read_text()[:8]


def _wandb(run: Path, start_step: int, config: dict[str, Any]) -> Board:
    name, identity = run.resolve().name, _identity(run, start_step)
    return _Tracker("wandb", name=name, id=identity, dir=str(run), config=config)


def _trackio(run: Path, start_step: int, config: dict[str, Any]) -> Board:
    # Runs have no id there but their name.
    name = f"{run.resolve().name} {_identity(run, start_step)}"
    return _Tracker("trackio", name=name, embed=False, config=config)


BOARDS: dict[str, Callable[[Path, int, dict[str, Any]], Board]] = {
    "tensorboard": _TensorBoard,
    "wandb": _wandb,
    "trackio": _trackio,
}


def check_boards(names: tuple[str, ...]) -> None:
    """Raise InputError, before a run begins, if a board is named twice or is not installed."""
    for number, name in enumerate(names):
        if name in names[:number]:
            raise InputError("log.to", f"{name} twice", "name it once")
        require("log.to", name, name)


class Boards:
    """All boards of a run. One that fails is reported once and gets no more; the run goes on."""

    def __init__(
        self, names: tuple[str, ...], run: Path, start_step: int, config: dict[str, Any]
    ) -> None:
        self.open: dict[str, Board] = {}
        for name in names:
            if name == "tensorboard" and not _is_utf8(run):
                say("note: TensorBoard needs a folder whose name is UTF-8", to_stderr=True)
                continue
            with self._reporting(name):
                self.open[name] = BOARDS[name](run, start_step, config)

    @contextlib.contextmanager
    def _reporting(self, name: str) -> Any:
        try:
            yield
        except Exception as error:
            # A full disk, which the metrics' own file will meet, too. Of a tracker an OSError is
            # mostly its network.
            if name == "tensorboard" and isinstance(error, OSError):
                raise
            self.open.pop(name, None)
            reason = printable(" ".join(f"{type(error).__name__}: {error}".split()), 300)
            say(f"warning: nothing more goes to {name} ({reason})", to_stderr=True)

    def add(self, step: int, values: dict[str, float]) -> None:
        """Hand a row to all boards. Raises OSError if a file cannot be written."""
        for name, board in tuple(self.open.items()):
            with self._reporting(name):
                board.add(step, values)

    def close(self) -> None:
        """Have all boards write what is left. Raises OSError if a file cannot be written."""
        for name, board in tuple(self.open.items()):
            with self._reporting(name):
                board.close()


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
