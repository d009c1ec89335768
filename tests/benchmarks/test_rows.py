"""What the op benchmarks share: values before times, ours before compiled, reasons for failures."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import conftest
from benchmarks.report.ops import failures
from tests.tiny import run_python


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    conftest.values_are_real.cache_clear()
    yield
    conftest.values_are_real.cache_clear()


@pytest.mark.parametrize(
    ("told", "computes", "raises"),
    [(False, False, True), (True, True, True), (True, False, False), (False, True, True)],
)
def test_values_are_only_left_unchecked_on_a_device_that_does_not_compute(
    told: bool, computes: bool, raises: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if told:
        monkeypatch.setenv("BENCHMARK_VALUES_UNREAL", "1")
    else:
        monkeypatch.delenv("BENCHMARK_VALUES_UNREAL", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    made = torch.ones(64) if computes else torch.zeros(64)
    monkeypatch.setattr("torch.ones", lambda *_, device: made)

    def check() -> None:
        with conftest.value_checks():
            raise AssertionError("wrong")

    if raises:
        with pytest.raises(AssertionError, match="wrong"):
            check()
    else:
        check()


def test_on_a_cpu_values_are_always_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHMARK_VALUES_UNREAL", "1")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert conftest.values_are_real()


def row(variant: str | None) -> Any:
    if variant is None:
        return types.SimpleNamespace(name="plain")
    return types.SimpleNamespace(
        name=variant, callspec=types.SimpleNamespace(params={"variant": variant})
    )


def test_where_time_is_short_ours_come_first_and_what_is_compiled_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ["eager", "compiled", "ours", "ours compiled", None, "gather compiled", "ours pack"]
    items: list[Any] = [row(name) for name in names]
    monkeypatch.delenv("BENCHMARK_DEADLINE", raising=False)
    conftest.pytest_collection_modifyitems(items)
    assert [item.name for item in items] == [name or "plain" for name in names]
    monkeypatch.setenv("BENCHMARK_DEADLINE", "1")
    conftest.pytest_collection_modifyitems(items)
    assert [item.name for item in items] == [
        *("ours", "ours pack", "eager", "plain", "compiled", "gather compiled", "ours compiled"),
    ]


TESTS = """
import pytest

@pytest.mark.parametrize("variant", ["eager", "ours"])
def test_values(variant):
    assert variant == "eager", "error of 0.3"

def test_breaks():
    raise RuntimeError("no kernel\\nlong story")

@pytest.mark.parametrize("i", range(3))
def test_late(i):
    pytest.skip("no time left")

def test_elsewhere():
    pytest.skip("needs a GPU")
"""


def test_a_row_that_fails_its_check_is_a_row_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "bench_toy.py").write_text(TESTS)
    told = tmp_path / "told.xml"
    assert failures(told) == []
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir"]
    run_python(*words, tmp_path, tmp_path / "bench_toy.py", f"--junitxml={told}")
    wrong, broken, late = failures(told)
    assert wrong["name"] == "test_values[ours]" and "error of 0.3" in wrong["error"]
    assert broken == {"name": "test_breaks", "error": "RuntimeError: no kernel"}
    assert late == {"name": "3 more rows", "error": "left out: no time"}
