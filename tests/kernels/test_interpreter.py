"""The ops' tests pass on the real Triton kernels, interpreted, in processes of their own."""

from __future__ import annotations

import re

import pytest

from sjepa_kernels._triton import HAVE_TRITON, INTERPRETED
from tests.kernels.interpreted import Run
from tests.kernels.op_case import all_cases

FILES = sorted(
    {file for case in all_cases().values() if case.in_triton for file in case.tests}
    | {"test_fuzz.py", "test_loss_scale.py", "test_poisoned.py", "test_properties.py"}
)


@pytest.mark.skipif(not HAVE_TRITON, reason="Triton is not installed")
@pytest.mark.skipif(INTERPRETED, reason="already interpreted")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("interpreted", FILES)
def test_kernels_in_the_interpreter(interpreted: str, interpreter: list[Run]) -> None:
    passed: list[str] = []
    for run in interpreter:
        code, output = run.result()
        failed = re.findall(r"^(?:FAILED|ERROR) \S*?(\w+\.py)", output, re.MULTILINE)
        # A process that fails must say where, or all of its files have failed.
        assert code == (1 if failed else 0), output[-8000:]
        assert interpreted not in failed, output[-8000:]
        passed += re.findall(rf"{interpreted}::\S*\[cpu-triton\S* PASSED", output)
    assert passed, f"no kernel test of {interpreted} ran"
