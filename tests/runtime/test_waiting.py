"""How OpenMP's threads wait: what is set, when, and that the library reads it."""

import sys

import pytest

from sjepa_fast._waiting import SETTINGS, SPINS, let_threads_sleep
from tests.tiny import environment, run_python


def test_threads_sleep_unless_the_user_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    found: dict[str, str] = {}
    assert let_threads_sleep(found) and found == {"GOMP_SPINCOUNT": SPINS}
    for name in SETTINGS:
        own = {name: "active"}
        assert not let_threads_sleep(own) and own == {name: "active"}


def test_nothing_is_set_where_torch_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", pytest)
    found: dict[str, str] = {}
    assert not let_threads_sleep(found) and found == {}


def printed(code: str, **more: str) -> str:
    """What a fresh process prints, with OpenMP's own account of its settings."""
    kept = {name: value for name, value in environment().items() if name not in SETTINGS}
    done = run_python("-c", code, env={**kept, "OMP_DISPLAY_ENV": "verbose", **more})
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_the_openmp_of_torch_reads_it() -> None:
    plain = printed("import torch")
    if "GOMP_SPINCOUNT" not in plain:
        pytest.skip("torch is not built with GNU's OpenMP")
    line = f"GOMP_SPINCOUNT = '{SPINS}'"
    assert line not in plain
    for module in ("sjepa_fast.train", "sjepa_fast.evaluate", "benchmarks.conftest"):
        assert line in printed(f"import {module}"), module
    assert "GOMP_SPINCOUNT = '7'" in printed("import sjepa_fast.train", GOMP_SPINCOUNT="7")
