"""Fixtures of the kernel tests."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.cases import Place, places


@pytest.fixture(params=places(), ids=str)
def place(request: pytest.FixtureRequest) -> Place:
    """One device and implementation that may run here."""
    chosen: Place = request.param
    if chosen.missing:
        pytest.skip(chosen.missing)
    return chosen


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
