"""Fixtures of the kernel tests."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.cases import Place, places


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test where its op has code: in C++ too if the test's module says HAS_CPP = True."""
    if "place" in metafunc.fixturenames:
        found = places(getattr(metafunc.module, "HAS_CPP", False))
        metafunc.parametrize("place", found, ids=str, indirect=True)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Place:
    """One device and implementation that may run here."""
    chosen: Place = request.param
    if chosen.missing:
        pytest.skip(chosen.missing)
    return chosen


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
