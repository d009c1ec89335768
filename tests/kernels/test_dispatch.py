"""Which implementation runs, and what is said when it cannot."""

from __future__ import annotations

import logging

import pytest
import torch

import sjepa_kernels
from sjepa_kernels import _dispatch, native, use
from sjepa_kernels._dispatch import choose
from tests.kernels.interpreted import python

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _built(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with Triton, without the interpreter, and with the C++ library."""
    monkeypatch.setattr(_dispatch, "_default", "auto")
    monkeypatch.setattr(_dispatch, "HAVE_TRITON", True)
    monkeypatch.setattr(_dispatch, "INTERPRETED", False)
    monkeypatch.setattr(_dispatch, "LIBRARY", object())
    monkeypatch.setattr(_dispatch, "_warned", False)


def test_auto() -> None:
    assert choose("auto", CUDA) == "triton"
    assert choose("auto", CPU, cpu=True) == "cpu"
    assert choose("auto", CPU) == "torch"
    assert choose("auto", torch.device("mps"), cpu=True) == "torch"


def test_argument_beats_use_beats_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "_default", "cpu")
    assert choose("auto", CPU, cpu=True) == "cpu"
    with use("torch"):
        assert choose("auto", CPU, cpu=True) == "torch"
        assert choose("cpu", CPU, cpu=True) == "cpu"
    assert choose("auto", CPU, cpu=True) == "cpu"


def test_use_restores_after_an_error() -> None:
    with pytest.raises(KeyError), use("torch"):
        raise KeyError
    assert choose("auto", CUDA) == "triton"
    with pytest.raises(ValueError, match="impl: 'fast'; choose one of"), use("fast"):
        pass


@pytest.mark.parametrize(
    ("impl", "device", "missing", "words"),
    [
        ("quick", CPU, None, "impl: 'quick'; choose one of auto, triton, cpu, torch"),
        ("triton", CPU, None, "set TRITON_INTERPRET=1 before the import"),
        ("triton", CUDA, "HAVE_TRITON", "'triton' without Triton; pip install triton"),
        ("cpu", CUDA, None, "'cpu' with tensors on cuda"),
        ("cpu", CPU, "LIBRARY", "'cpu' without the C\\+\\+ library; reinstall with a C\\+\\+"),
    ],
)
def test_impossible_choice_names_the_fix(
    impl: str,
    device: torch.device,
    missing: str | None,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if missing:
        monkeypatch.setattr(_dispatch, missing, None)
    with pytest.raises(ValueError, match=words):
        choose(impl, device, cpu=True)


def test_interpreter_takes_cpu_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "INTERPRETED", True)
    assert choose("triton", CPU) == "triton"


def test_slow_cuda_path_warns_once(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(_dispatch, "HAVE_TRITON", False)
    with pytest.warns(RuntimeWarning, match="Triton is not installed"):
        assert choose("auto", CUDA) == "torch"
    recwarn.clear()
    assert choose("auto", CUDA) == "torch"
    assert len(recwarn) == 0


def test_missing_library_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_dispatch, "LIBRARY", None)
    monkeypatch.setattr(native, "_warned", False)
    with caplog.at_level(logging.WARNING, logger="sjepa_kernels"):
        for _ in range(2):
            assert choose("auto", CPU, cpu=True) == "torch"
    assert [r.message for r in caplog.records if "C++ kernels are not built" in r.message] == [
        r.message for r in caplog.records
    ]
    assert len(caplog.records) == 1


def test_environment_variable_sets_the_default() -> None:
    code = (
        "import torch, sjepa_kernels as k;"
        "k.centered_softmax_cross_entropy(torch.ones(2, 2), torch.ones(2, 2), torch.ones(2))"
    )
    result = python(code, SJEPA_IMPL="triton")
    assert result.returncode == 1
    assert "impl: 'triton' with tensors on cpu" in result.stderr


def test_imports_and_runs_without_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, sjepa_kernels as k\n"
        "loss, _ = k.centered_softmax_cross_entropy(\n"
        "    torch.zeros(2, 4), torch.ones(2, 4), torch.ones(4), impl='torch')\n"
        "assert abs(loss.item() - torch.tensor(4.0).log().item()) < 1e-6\n"
        "out = k.scatter_mask_tokens(torch.ones(1, 1, 2), torch.zeros(2),\n"
        "    torch.tensor([[1]]), torch.zeros(1, 2), torch.zeros(2, 2))\n"
        "assert out.tolist() == [[[0, 0], [1, 1]]]\n"
    )
    result = python(code)
    assert result.returncode == 0, result.stderr


def test_all_names_exist() -> None:
    assert all(hasattr(sjepa_kernels, name) for name in sjepa_kernels.__all__)
