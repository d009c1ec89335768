"""Tests in this folder need the null GPU, unless their module says `RUNS_ANYWHERE = True`."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.null_gpu import gpu

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if gpu.available():
        return
    for item in items:
        anywhere = getattr(getattr(item, "module", None), "RUNS_ANYWHERE", False)
        if item.path.is_relative_to(HERE) and not anywhere:
            item.add_marker(pytest.mark.skip(reason="needs the null GPU: run make rehearse"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Print tensors of a failed test as zeros: the printer would believe a garbage count."""
    if not gpu.available():
        return (yield)
    with gpu.zeros_read():
        return (yield)


@pytest.fixture(autouse=True)
def fresh_records() -> Iterator[None]:
    """Each test begins with an empty list of calls."""
    if gpu.available():
        gpu.reset()
    yield
