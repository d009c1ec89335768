"""The C++ reader of `.skeleton` text under AddressSanitizer and UBSan, beside the Python reader.

`skeleton_driver.cpp` is built into the worker's own folder and reads one file after the other.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sjepa_fast.data.readers.ntu_text import JOINTS, LINE_BYTES, parse_bytes
from tests.fuzz.mutate import mutate_bytes, mutate_text
from tests.fuzz.target import Crashed, Target, Unavailable

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (ROOT / "csrc/skeleton_text.cpp", ROOT / "tests/fuzz/skeleton_driver.cpp")
FLAGS = ["-std=c++17", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
_FIELDS = ("1e22", "1e23", "-0", "9007199254740993", "1e-400", "1e400", "1e10001", ".5", "5.", "-.")
_FIELDS += (
    "123456789012345678901234567890",
    "0." + "1" * 40,
    "+1",
    "0x1p3",
    "nan",
    "infinity",
    "1e",
)
_COUNTS = ("0", "1", "2", "3", "24", "26", "100000000", "100000001", "99999999999999999999", "-1")


def text_of(rng: random.Random, joints: int = JOINTS) -> str:
    """A small file as the sensor writes it: frames, bodies, joints, numbers of several lengths."""
    lines = [str(frames := rng.choice((0, 1, 1, 2, 3)))]
    for _ in range(frames):
        lines.append(str(bodies := rng.choice((0, 1, 1, 2))))
        for body in range(bodies):
            lines.append(f"7205759403792794{body} 0 1 1 0 0 0 0.1 -0.2 2")
            lines.append(str(joints))
            for _ in range(joints):
                xyz = (rng.uniform(-4, 4) for _ in range(3))
                digits = rng.choice((1, 4, 7, 17))
                lines.append(" ".join(f"{x:.{digits}g}" for x in xyz) + " 255.5 0 2")
    return "\n".join(lines) + rng.choice(("", "\n", "\r\n"))


def _make(rng: random.Random, folder: Path) -> Path:
    if _driver is not None and _driver.process.poll() is not None:
        _driver.start()
    text, kind = text_of(rng), rng.random()
    if kind < 0.1:
        data = text.encode()
    elif kind < 0.7:
        data = mutate_text(rng, text, (*_FIELDS, *_COUNTS))
    else:
        data = mutate_bytes(rng, text.encode(), [token.encode() for token in (*_FIELDS, *_COUNTS)])
    if rng.random() < 0.05:
        data = data.replace(b"\n", rng.choice((b"\r\n", b"\r", b" \n", b"\n\n", b"\t\n")))
    path = folder / "S001C001P001R001A001.skeleton"
    path.write_bytes(data)
    return path


@dataclass
class Driver:
    """The driver, started again when a sanitizer has ended it."""

    program: Path
    process: Any = None

    def start(self) -> None:
        """Start it; the worker's limit on memory, under which it could not, holds in runs alone."""
        environment = {**os.environ, "ASAN_OPTIONS": "abort_on_error=0:detect_leaks=0"}
        with self.program.with_suffix(".log").open("wb") as log:
            self.process = subprocess.Popen(
                [self.program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
            )

    def close(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.communicate()

    def read(self, path: Path) -> list[str]:
        """Return status, rows, bodies, frames and sum; raises Crashed with a sanitizer's report."""
        rows = path.stat().st_size // (JOINTS * LINE_BYTES) + 1
        self.process.stdin.write(f"{JOINTS} {rows} {path}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if answer:
            return list(answer.split())
        self.process.wait()
        report = self.program.with_suffix(".log").read_text(errors="replace")
        told = [line for line in report.splitlines() if "ERROR" in line or "runtime error" in line]
        raise Crashed((told or [report[:300]])[0])


_driver: Driver | None = None


def build(folder: Path, sources: tuple[Path, ...] = SOURCES) -> Path:
    """Compile the driver; raises Unavailable without a compiler that has the sanitizers."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise Unavailable("no C++ compiler")
    program = folder / "skeleton_driver"
    command = [compiler, *FLAGS, f"-I{ROOT / 'csrc'}", *sources, "-o", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    if done.returncode:
        raise Unavailable(f"no sanitizers ({done.stderr.strip().splitlines()[-1]:.200})")
    return program


def _setup(folder: Path) -> None:
    global _driver
    _driver = Driver(build(folder))
    _driver.start()
    path = _make(random.Random(0), folder)
    _run(path)


def _run(path: Path) -> str:
    assert _driver is not None
    status, *found = _driver.read(path)
    if status != "0":
        return "skipped: left to the Python reader"
    tracks = parse_bytes(path.read_bytes())
    assert not isinstance(tracks, str), tracks
    bodies, frames = tracks
    rows = sum(len(track.joints_TV3) for track in bodies)
    assert [rows, len(bodies), frames] == [int(number) for number in found[:3]], found
    total = math.fsum(float(x) for track in bodies for x in track.joints_TV3.ravel())
    scale = sum(abs(float(x)) for track in bodies for x in track.joints_TV3.ravel())
    assert math.isclose(total, float(found[3]), rel_tol=1e-9, abs_tol=1e-12 * scale), found
    return "accepted"


TARGETS = (Target("C++ skeleton text", _make, _run, _setup),)
