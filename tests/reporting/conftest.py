"""Runs of a few steps, with the pages that training wrote of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reporting.runs import SHORT
from tests.tiny import trained


@pytest.fixture(scope="session")
def sjepa_run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(store, tmp_path_factory.mktemp("report") / "run-a", *SHORT, "--profile")


@pytest.fixture(scope="session")
def mamp_run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind = ("--objective.kind=mamp", "--objective.target-norm=patch")
    return trained(store, tmp_path_factory.mktemp("report") / "run-m", *SHORT, *kind)
