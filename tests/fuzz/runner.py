"""Feeds workers with inputs, restarts them when they die, and counts what happened."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.target import BAD

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 10  # for one input
# A second watch, over a worker whose own alarm did not go off, and over its setup.
GRACE = 5
SETUP = 300


class Broken(RuntimeError):
    """Raised where the harness or a target failed outside of an input."""


@dataclass
class Tally:
    """What happened to the inputs of a target."""

    target: str
    counts: Counter[str] = field(default_factory=Counter)
    found: list[dict[str, Any]] = field(default_factory=list)  # the defects
    seconds: float = 0.0
    slowest: float = 0.0  # seconds of one input
    unavailable: str = ""  # why it was left out

    @property
    def inputs(self) -> int:
        """How many inputs were opened."""
        return self.counts.total()

    def add(self, seed: int, number: int, outcome: str, detail: str, seconds: float) -> None:
        """Count one input."""
        self.counts[outcome] += 1
        self.seconds += seconds
        self.slowest = max(self.slowest, seconds)
        if outcome in BAD:
            case = {"target": self.target, "seed": seed, "input": number}
            self.found.append(case | {"outcome": outcome, "detail": detail})


class Worker:
    """A worker process in a folder of its own; for use in a `with`."""

    def __init__(self, limit: float = SECONDS) -> None:
        self._limit = limit  # seconds for one input
        self._process: subprocess.Popen[bytes] | None = None
        base = Path("/dev/shm")
        self._top = Path(tempfile.mkdtemp(prefix="fuzz-", dir=base if base.is_dir() else None))
        self._starts = 0

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        shutil.rmtree(self._top, ignore_errors=True)

    def run(
        self, target: str, module: str, seed: int, numbers: range, seconds: float | None = None
    ) -> Tally:
        """Open the inputs of a range, or as many as the seconds allow; a setup is not counted."""
        tally = Tally(target)
        most = 1e9 if seconds is None else seconds
        following = numbers.start
        while following < numbers.stop and tally.seconds < most:
            job = {"module": module, "target": target, "seed": seed}
            job |= {"start": following, "stop": numbers.stop}
            job |= {"seconds": most - tally.seconds, "limit": self._limit}
            try:
                for number, *rest in self.answers(job, tally):
                    tally.add(seed, number, *rest)
                    following = number + 1
                break
            except _Died as death:
                tally.add(seed, following, death.outcome, death.detail, death.seconds)
                following += 1
        return tally

    def answers(self, job: dict[str, Any], tally: Tally) -> Iterator[list[Any]]:
        """Send a job to the worker and yield what it says of each input."""
        process = self._start()
        assert process.stdin is not None
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()
        try:
            tally.unavailable = self._line(SETUP)
        except _Died as death:
            raise Broken(f"the setup of {job['target']} failed: {death.detail}") from None
        if tally.unavailable:
            return
        while (answer := self._line(self._limit + GRACE)) is not None:
            yield answer

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._starts += 1
        folder = self._top / f"worker-{self._starts}"
        folder.mkdir()
        self._errors = folder / "stderr"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.worker", str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=ROOT,
                env=_environment(),
                start_new_session=True,
            )
        self._read = b""
        return self._process

    def _line(self, seconds: float) -> Any:
        process = self._process
        assert process is not None and process.stdout is not None
        began = time.monotonic()
        late = False
        while b"\n" not in self._read:
            ready, _, _ = select.select([process.stdout], [], [], seconds)
            late = not ready
            part = os.read(process.stdout.fileno(), 2**16) if ready else b""
            if not part:
                raise self._death(late, time.monotonic() - began)
            self._read += part
        line, _, self._read = self._read.partition(b"\n")
        return json.loads(line)

    def _death(self, late: bool, seconds: float) -> _Died:
        """Return what became of a worker that says nothing more."""
        process = self._process
        assert process is not None
        if late:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        code = process.returncode
        self._stop()
        errors = self._errors.read_text(errors="replace")
        if not late and "Timeout (" not in errors and code >= 0:
            raise Broken(f"the worker ended with {code}:\n{errors[-3000:]}")
        outcome = "HANG" if late or code >= 0 else "CRASH"
        if outcome == "HANG":
            detail = " < ".join(line.strip() for line in errors.splitlines() if "File" in line)
        else:
            detail = f"{signal.Signals(-code).name}: {errors[-600:]}"
        return _Died(outcome, detail[:800], seconds)

    def _stop(self) -> None:
        if self._process is not None:
            # Its group: a target may have a process of its own.
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
            self._process = None


class _Died(Exception):
    def __init__(self, outcome: str, detail: str, seconds: float) -> None:
        self.outcome, self.detail, self.seconds = outcome, detail, seconds


def _environment() -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    fixed = {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONHASHSEED": "0",
        # Each thread and each arena takes address space, which is what is limited.
        "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "2",
        "COLUMNS": "200",
        "NO_COLOR": "1",
    }
    return {**os.environ, **fixed}
