"""Runs the ops' tests on the real Triton kernels, interpreted, in processes of their own.

`TRITON_INTERPRET` is read when a kernel is decorated, so it cannot be switched on in here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from sjepa_kernels._triton import HAVE_TRITON, INTERPRETED
from tests.kernels.op_case import all_cases

HERE = Path(__file__).parent
# Each is one thread; every process takes its share of the tests of each file.
PROCESSES = 2
FILES = sorted(
    {file for case in all_cases().values() if case.in_triton for file in case.tests}
    | {"test_fuzz.py", "test_poisoned.py"}
)
Runs = list[Future[subprocess.CompletedProcess[str]]]


def interpret(files: list[str], share: int) -> subprocess.CompletedProcess[str]:
    """Run a share of the tests of these files in a process whose kernels are interpreted."""
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-v",
            "-p",
            "no:cacheprovider",
            *(HERE / f for f in files),
        ],
        env={
            **os.environ,
            "TRITON_INTERPRET": "1",
            "OMP_NUM_THREADS": "1",
            "SJEPA_TEST_SHARE": f"{share}/{PROCESSES}",
        },
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[Runs]:
    """Start the processes with the files that are selected here."""
    here = [item for item in request.session.items if item.path == Path(__file__)]
    files = [
        str(item.callspec.params["name"]) for item in here if isinstance(item, pytest.Function)
    ]
    with ThreadPoolExecutor(PROCESSES) as pool:
        yield [pool.submit(interpret, files, share) for share in range(PROCESSES)]


@pytest.mark.skipif(not HAVE_TRITON, reason="Triton is not installed")
@pytest.mark.skipif(INTERPRETED, reason="already interpreted")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", FILES)
def test_kernels_in_the_interpreter(name: str, runs: Runs) -> None:
    passed: list[str] = []
    for run in runs:
        result = run.result()
        report = result.stdout[-6000:] + result.stderr[-2000:]
        failed = re.findall(r"^(?:FAILED|ERROR) \S*?(\w+\.py)", result.stdout, re.MULTILINE)
        # A process that fails must say where, or all of its files have failed.
        assert result.returncode == (1 if failed else 0), report
        assert name not in failed, report
        passed += re.findall(rf"{name}::\S*\[cpu-triton\S* PASSED", result.stdout)
    assert passed, f"no kernel test of {name} ran"
