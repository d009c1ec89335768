"""The log of a run while it trains: a live line, `metrics.jsonl` and boards."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.live import Live
from rich.text import Text

from sjepa_fast._version import __version__
from sjepa_fast.errors import InputError
from sjepa_fast.names import hush, printable, say
from sjepa_fast.opening import read_json, read_regular
from sjepa_fast.runtime.boards import Boards
from sjepa_fast.runtime.files import write_text
from sjepa_fast.runtime.saving import failed_to_write

METRICS_BYTES = 2**28


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Return the rows of a run's `metrics.jsonl`, oldest first, without values that are not finite.

    A torn last line, which a killed process may leave, is not a row. Raises InputError if another
    line is not a row: a mapping of names to numbers or null, with a `step`.
    """
    rows = _read_rows(run)
    return [{k: v for k, v in row.items() if v is not None} for row in rows]


def _read_rows(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    content = read_regular("run", path, METRICS_BYTES)
    lines = content.decode(errors="replace").rstrip("\n").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        row = _row(line)
        if row is not None:
            rows.append(row)
        elif number < len(lines):
            raise InputError("run", f"{path}, line {number} is not a row", "delete the line")
    return rows


def _row(line: str) -> dict[str, Any] | None:
    try:
        # NaN was written by older versions.
        found = json.loads(line, parse_constant=lambda _: None)
        if type(found["step"]) is not int or found["step"] < 0:
            return None
        return {key: _finite(value) for key, value in found.items()}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def _finite(value: float | None) -> float | None:
    """Return a number, or None for what JSON cannot hold; raises TypeError if it is no number."""
    if isinstance(value, bool):
        raise TypeError("a boolean")
    return value if value is not None and math.isfinite(value) else None


def environment(device: torch.device, dtype: torch.dtype, reason: str) -> dict[str, object]:
    """Describe versions, device and source state, for `env.json`."""
    git = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "sjepa_fast": __version__,
        "git": git.stdout.strip() or None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": str(device),
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "dtype_reason": reason,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def recorded_dtype(run: Path) -> torch.dtype | None:
    """Return the compute precision that `env.json` of a run names; None if there is no such file.

    Raises InputError if the file is damaged.
    """
    path = run / "env.json"
    if not path.exists():
        return None
    try:
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[
            read_json("run", path)["dtype"]
        ]
    except (InputError, TypeError, KeyError) as error:
        fix = "restore the file, or delete it to have the precision chosen anew"
        raise InputError("run", f"{path} names no precision", fix) from error


class RunLog:
    """Writes a run's metric rows; a resumed run drops the rows of steps that it repeats.

    The boards named, which get each row too, show `config` with the run.
    """

    def __init__(
        self,
        run: Path,
        start_step: int,
        boards: tuple[str, ...] = (),
        config: dict[str, Any] | None = None,
    ) -> None:
        # A fresh start keeps no row, not even step 0 of a run that never reached a checkpoint.
        kept = [row for row in _read_rows(run) if row["step"] <= start_step] if start_step else []
        self.run, path = run, run / "metrics.jsonl"
        with self._writing():
            write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
            self.file = path.open("a", encoding="utf-8")
        self.console = Console(stderr=False)
        self.live: Live | None = None
        with self._writing():
            self.boards = Boards(boards, run, start_step, config or {})

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise failed_to_write(self.run, "its metrics", error) from error

    def __enter__(self) -> RunLog:
        """Start the live line where the output is a terminal."""
        if self.console.is_terminal:
            self.live = Live(Text(""), console=self.console, refresh_per_second=4)
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        """Stop the live line and close the files."""
        if self.live is not None:
            self.live.stop()
        # Where the block has failed, its own error is the one to be raised.
        with contextlib.suppress(*() if kind is None else (OSError,)), self._writing():
            try:
                self.file.flush()
                os.fsync(self.file.fileno())
                self.boards.close()
            finally:
                self.file.close()

    def row(self, step: int, values: dict[str, float]) -> None:
        """Append one row of metrics; what is not finite becomes null, for JSON has no NaN.

        Raises OSError, in one line, if it cannot be written, or the run's folder was deleted.
        """
        finite = {name: _finite(value) for name, value in values.items()}
        with self._writing():
            self.file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")
            self.file.flush()
            if os.fstat(self.file.fileno()).st_nlink == 0:
                raise FileNotFoundError("metrics.jsonl was deleted")
            self.boards.add(step, values)

    def line(self, text: str) -> None:
        """Show the current state: in place on a terminal, one line each elsewhere."""
        if self.live is not None:
            self._show(partial(self.live.update, Text(printable(text))))
        else:
            self._show(partial(say, text))

    def note(self, text: str) -> None:
        """Print a permanent line."""
        if self.live is not None:
            show = partial(self.console.print, markup=False, highlight=False)
            self._show(partial(show, printable(text)))
        else:
            self._show(partial(say, text))

    def _show(self, show: Callable[[], object]) -> None:
        try:
            show()
        except OSError:
            # Who read the output is gone, perhaps by the signal that we got too: there is a run to
            # be saved.
            hush()


def progress_line(step: int, total: int, values: dict[str, float], left_seconds: float) -> str:
    """Format the live line from the newest metrics; figures not yet measured are left out."""
    parts = [f"step {step}/{total}"]
    for key, label, form in (
        ("loss", "loss", ".3f"),
        ("skipped", "skipped", ".0f"),
        ("lr", "lr", ".2e"),
        ("momentum", "ema", ".5f"),
        ("effective_rank", "rank", ".1f"),
        ("target_entropy", "H(target)", ".2f"),
        ("knn", "kNN", ".1f"),
        ("top1", "top-1", ".1f"),
        ("clips_per_second", "clips/s", ".0f"),
        ("ms_per_step", "ms/step", ".1f"),
        ("gpu_mb", "GPU MB", ".0f"),
    ):
        if key in values:
            parts.append(f"{label} {values[key]:{form}}")
    minutes, seconds = divmod(round(left_seconds), 60)
    eta = f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}"
    return " | ".join([*parts, f"ETA {eta}"])
