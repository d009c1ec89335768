"""Runs this folder's op tests on the real Triton kernels, interpreted, in their own process.

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
OPS = sorted(
    {file for case in all_cases().values() if case.in_triton for file in case.tests}
    | {"test_fuzz.py", "test_poisoned.py"}
)


def interpret(name: str) -> subprocess.CompletedProcess[str]:
    """Run one file of tests in a process whose kernels are interpreted."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", HERE / name],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def results(
    request: pytest.FixtureRequest,
) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """Start the selected files, two at a time: each is one thread and takes up to a minute."""
    here = [item for item in request.session.items if item.path == Path(__file__)]
    names = [item.callspec.params["name"] for item in here if isinstance(item, pytest.Function)]
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield {name: pool.submit(interpret, name) for name in names}
        pool.shutdown(cancel_futures=True)


@pytest.mark.skipif(not HAVE_TRITON, reason="Triton is not installed")
@pytest.mark.skipif(INTERPRETED, reason="already interpreted")
@pytest.mark.parametrize("name", OPS)
def test_kernels_in_the_interpreter(
    name: str, results: dict[str, Future[subprocess.CompletedProcess[str]]]
) -> None:
    result = results[name].result()
    report = result.stdout[-6000:] + result.stderr[-2000:]
    assert result.returncode == 0, report
    ran = re.findall(rf"{name}::\S*\[cpu-triton\S* PASSED", result.stdout)
    assert ran, f"no kernel test of {name} ran: {report}"
