"""Processes that run the ops' tests on the real Triton kernels, interpreted.

`TRITON_INTERPRET` is read when a kernel is decorated, so it cannot be switched on in a process that
has imported the kernels. The processes start when the tests are collected and run beside the other
tests, which use one thread.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Run:
    """One process and the file that its output goes to."""

    process: subprocess.Popen[str]
    output: IO[str]

    def result(self) -> tuple[int, str]:
        """Wait for the end, and return exit code and output."""
        code = self.process.wait()
        self.output.seek(0)
        return code, self.output.read()


def python(
    code: str, folder: Path = HERE.parents[1] / "kernels", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run code with the package of a folder, interpreted only where `variables` say so."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command, environment = [sys.executable, "-c", code], kept | {"PYTHONPATH": str(folder)}
    return subprocess.run(command, env=environment | variables, capture_output=True, text=True)


def start(files: list[str], processes: int) -> list[Run]:
    """Run the tests of these files in some processes, each with its share of every file."""
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider"]
    runs = []
    for share in range(processes):
        output = tempfile.TemporaryFile("w+")  # noqa: SIM115 (the run closes it)
        environment = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        environment["SJEPA_TEST_SHARE"] = f"{share}/{processes}"
        process = subprocess.Popen(
            [*command, *(str(HERE / name) for name in files)],
            env=os.environ | environment,
            cwd=HERE.parents[1],
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
        runs.append(Run(process, output))
    return runs
