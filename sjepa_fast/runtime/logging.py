# SPDX-License-Identifier: Apache-2.0
"""The log of a run while it trains: `metrics.jsonl` and boards."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sjepa_fast._version import __version__
from sjepa_fast.errors import InputError
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
        with self._writing():
            self.boards = Boards(boards, run, start_step, config or {})

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise failed_to_write(self.run, "its metrics", error) from error

    def __enter__(self) -> RunLog:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        """Close the files."""
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
