"""Random calls of every op, in random shapes and strides: right against float64 or integers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sjepa_kernels._triton import INTERPRETED
from tests.kernels.cases import Place, places
from tests.kernels.fuzzing import FUZZ, Draw
from tests.kernels.op_case import Absent, OpCase, all_cases


def places_of(case: OpCase) -> list[Place]:
    return places(case.in_cpp) if case.in_triton else [Place("cpu", "torch")]


@pytest.mark.parametrize(
    ("where", "case"),
    [
        pytest.param(where, case, id=f"{where}-{name}")
        for name, case in all_cases().items()
        if not isinstance(case.fuzz, Absent)
        for where in places_of(case)
    ],
)
def test_random_calls(where: Place, case: OpCase) -> None:
    if where.missing:
        pytest.skip(where.missing)
    fuzz = case.fuzz
    assert not isinstance(fuzz, Absent)

    @settings(FUZZ, max_examples=fuzz.interpreted if INTERPRETED else fuzz.examples)
    @given(data=st.data())
    def check_examples(data: st.DataObject) -> None:
        fuzz.check(Draw(where, data))

    check_examples()
