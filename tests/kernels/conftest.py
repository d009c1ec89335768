"""Fixtures of the kernel tests."""

from __future__ import annotations

import os

import pytest
import torch

from tests.kernels.cases import Place, places


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test where its op has code: in C++ too if the test's module says HAS_CPP = True."""
    if "place" in metafunc.fixturenames:
        found = places(getattr(metafunc.module, "HAS_CPP", False))
        metafunc.parametrize("place", found, ids=str, indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a share of the tests ("0/2": every second one), for processes that share the work."""
    share, of = map(int, os.environ.get("SJEPA_TEST_SHARE", "0/1").split("/"))
    items[:] = items[share::of]


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
