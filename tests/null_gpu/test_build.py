"""How the null driver is built and started, as far as it needs no CUDA build of torch."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.null_gpu import build as building
from tests.null_gpu import gpu
from tests.null_gpu.__main__ import main
from tests.null_gpu.build import LIBRARY, Unavailable, build, environment, header_options

RUNS_ANYWHERE = True


def site_with_headers(root: Path) -> Path:
    for folder in ("nvidia/cu13/include", "nvidia/cudnn/include", "triton/backends/nvidia/include"):
        (root / folder).mkdir(parents=True)
    return root


def test_headers_of_triton_come_last(tmp_path: Path) -> None:
    options = header_options(site_with_headers(tmp_path))
    assert options[0::2] == ["-isystem", "-isystem", "-idirafter"]
    assert options[-1].endswith("triton/backends/nvidia/include")


def test_without_a_cuda_build_of_torch_the_reason_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"purelib": str(tmp_path)})
    monkeypatch.setattr(sys, "argv", ["tests.null_gpu", "script.py"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 3
    reason = f"no null GPU: no CUDA build of torch here: {tmp_path}/nvidia/cu13/include is missing"
    assert capsys.readouterr().err.strip() == reason


def test_without_a_compiler_the_reason_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(Unavailable, match="g\\+\\+ is missing"):
        build(site_with_headers(tmp_path))


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A driver of one file, and empty folders of headers."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is missing")
    monkeypatch.setattr(building, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(building, "SOURCES", tmp_path / "driver")
    (tmp_path / "driver").mkdir()
    (tmp_path / "driver" / "one.cpp").write_text('extern "C" int one() { return 1; }\n')
    return site_with_headers(tmp_path / "site")


def test_the_driver_is_built_again_when_a_source_changes(toy: Path) -> None:
    first = build(toy)
    built = (first / LIBRARY).stat().st_mtime_ns
    assert build(toy) == first and (first / LIBRARY).stat().st_mtime_ns == built
    (building.SOURCES / "two.h").write_text("// new\n")
    assert build(toy) != first


def test_a_warning_of_the_compiler_is_an_error(toy: Path) -> None:
    (building.SOURCES / "one.cpp").write_text("static int unused;\n")
    with pytest.raises(RuntimeError, match="unused"):
        build(toy)


def test_a_child_gets_the_driver_its_card_and_this_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    found = environment(tmp_path, gib=2.5, zeros=True)
    assert found["LD_PRELOAD"] == str(tmp_path / LIBRARY)
    assert found["TRITON_LIBCUDA_PATH"] == str(tmp_path)
    assert (found["NULLGPU_GIB"], found["NULLGPU_ZEROS"]) == ("2.5", "1")
    places = found["PYTHONPATH"].split(":")
    assert places == [str(building.ROOT), str(building.ROOT / "kernels"), "/elsewhere"]


def test_the_driver_compiles_where_its_headers_are() -> None:
    try:
        folder = build()
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert (folder / LIBRARY).exists()


@pytest.mark.skipif(gpu.available(), reason="this process is on the null GPU")
def test_a_process_elsewhere_is_told_how_to_get_there() -> None:
    with pytest.raises(RuntimeError, match=r"start it by -m tests\.null_gpu"):
        gpu.records()


def test_the_constraints_name_torch_and_triton_alone() -> None:
    lines = (Path(building.__file__).parent / "constraints.txt").read_text().splitlines()
    pins = [line.partition("==")[0] for line in lines if not line.startswith("#")]
    assert pins == ["torch", "triton"]
