"""Random calls of every op, in random shapes and strides: right against float64 or integers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sjepa_kernels._triton import INTERPRETED
from tests.kernels.cases import Place, at, places
from tests.kernels.fuzzing import FUZZ, Draw
from tests.kernels.op_case import Absent, Fuzz, all_cases

CALLS = [
    at(where, case.fuzz, name=name)
    for name, case in all_cases().items()
    if not isinstance(case.fuzz, Absent)
    for where in (places(case.in_cpp) if case.in_triton else [Place("cpu", "torch")])
]


@pytest.mark.parametrize(("where", "fuzz"), CALLS)
def test_random_calls(where: Place, fuzz: Fuzz) -> None:
    @settings(FUZZ, max_examples=fuzz.interpreted if INTERPRETED else fuzz.examples)
    @given(data=st.data())
    def check_examples(data: st.DataObject) -> None:
        fuzz.check(Draw(where, data))

    check_examples()
