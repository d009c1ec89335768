"""`python -m sjepa_kernels`: what it covers, that it can fail, and that it runs on torch alone."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from sjepa_kernels._triton import HAVE_TRITON
from sjepa_kernels.augment import reference
from sjepa_kernels.masks import tokens
from sjepa_kernels.native import LIBRARY
from sjepa_kernels.selfcheck import checks, losses
from tests.kernels.cases import SLACK
from tests.kernels.interpreted import python
from tests.kernels.op_case import all_cases

KERNELS = Path(__file__).parents[2] / "kernels"
# As on a machine without it: no finder knows the name, so an import says that it is missing.
HIDE_TRITON = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] == "triton"
        return None if hidden else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""
RUN = "import runpy; runpy.run_module('sjepa_kernels', run_name='__main__', alter_sys=True)"


def table(printed: str) -> dict[tuple[str, str, str], tuple[float, float, str]]:
    """The lines of the table by (op, impl, device)."""
    lines = re.findall(
        r"^(\S.*?\S) {2,}(\w+) +(cpu|cuda) +(\S+) +(\S+) {2}(.+)$", printed, flags=re.MULTILINE
    )
    return {(op, impl, at): (float(e), float(b), end) for op, impl, at, e, b, end in lines}


def test_every_public_op_is_checked() -> None:
    named = {name.split()[0] for key in checks.CHECKS for name in key.split(", ")}
    checked = {case.checked_with or name for name, case in all_cases().items()}
    assert named == checked | {"EmaPlan", "FusedAdamWEma"}
    assert SLACK[torch.float32] == checks.SLACK


@pytest.mark.parametrize(("triton", "library"), [(True, True), (False, True), (False, False)])
def test_runs_with_what_is_there(triton: bool, library: bool, tmp_path: Path) -> None:
    """With and without Triton, interpreted because there may be no GPU, and the C++ library."""
    if (triton and not HAVE_TRITON) or (library and LIBRARY is None):
        pytest.skip("this machine lacks it")
    ignored = shutil.ignore_patterns("__pycache__", *([] if library else ["_csrc*"]))
    shutil.copytree(KERNELS / "sjepa_kernels", tmp_path / "sjepa_kernels", ignore=ignored)
    hide, variables = ("", {"TRITON_INTERPRET": "1"}) if triton else (HIDE_TRITON, {})
    result = python(hide + RUN, tmp_path, **variables)
    assert result.returncode == 0, result.stdout + result.stderr
    assert ("Triton absent" in result.stdout) == (not triton)
    assert ("C++ library absent" in result.stdout) == (not library)
    rows = table(result.stdout)
    expected = {(op, "torch") for op in checks.CHECKS}
    expected |= {
        (op, impl)
        for op, check in checks.CHECKS.items()
        for impl, there in (("triton", triton), ("cpu", library))
        if there and impl in check.impls
    }
    assert {(op, impl) for op, impl, device in rows if device == "cpu"} == expected
    for error, budget, end in rows.values():
        assert error <= budget and end == "ok"
    # Every op says what it fell back on at most once, in one line.
    assert len(result.stderr.splitlines()) <= 1, result.stderr


def test_one_wrong_op_fails_the_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = checks.pack_tokens
    monkeypatch.setattr(checks, "pack_tokens", lambda *a, **k: good(*a, **k) * (1 + 3e-6))
    assert checks.main() == 1
    rows = table(capsys.readouterr().out)
    ends = {op: end for (op, impl, device), (_, _, end) in rows.items() if impl == "torch"}
    assert ends.pop("pack_tokens") == "OVER BUDGET"
    assert set(ends.values()) == {"ok"}


def test_wrong_gradients_nan_bits_and_errors_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good_attention, good_philox = checks.attention, checks.philox4x32

    def wrong_gradient(q: torch.Tensor, *others: torch.Tensor, impl: str) -> torch.Tensor:
        return good_attention(q.detach(), *others, impl=impl) + 0 * q

    def flipped(*args: object) -> list[torch.Tensor]:
        first, *others = good_philox(*args)
        return [first ^ 1, *others]

    def broken(*args: object, **options: object) -> None:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(checks, "attention", wrong_gradient)
    # The lowest bit of one word: far below the rounding of a float.
    monkeypatch.setattr(checks, "philox4x32", flipped)
    monkeypatch.setattr(losses, "update_center_", lambda c, *rest: c.fill_(float("nan")))
    monkeypatch.setattr(checks, "scatter_mask_tokens", broken)
    assert checks.main() == 1
    printed = capsys.readouterr().out
    ends = {op: end for (op, _, _), (_, _, end) in table(printed).items()}
    wrong = {op for op, end in ends.items() if end == "OVER BUDGET"}
    attentions = {"attention", "attention (bfloat16)"}
    assert wrong == {*attentions, "philox4x32, uniform", "update_center_"}
    assert re.search(
        r"^scatter_mask_tokens .* FAILED: RuntimeError: no kernel image", printed, re.M
    )


def test_wrong_references_fail_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The truth of what is random is derived apart from the references."""
    keys, angle = tokens.motion_keys, reference.rotation_about
    monkeypatch.setattr(tokens, "motion_keys", lambda *a: keys(*a).roll(1, dims=1))
    monkeypatch.setattr(reference, "rotation_about", lambda axis, a: angle(axis, 1.001 * a))
    assert checks.main() == 1
    ends = {
        op: end
        for (op, impl, device), (_, _, end) in table(capsys.readouterr().out).items()
        if (impl, device) == ("torch", "cpu")
    }
    wrong = {op for op, end in ends.items() if end == "OVER BUDGET"}
    assert wrong == {"augment_clips", "motion_aware_mask, random_mask, tube_mask"}


def test_a_single_flipped_bit_counts() -> None:
    words = torch.tensor([2**31, 5])
    assert checks._worst([(words, words, words)]) == (0.0, 0.0)
    error, budget = checks._worst([(words ^ 1, words, words)])
    assert error > budget == 0.0


def test_a_failure_is_the_exit_code_of_the_module() -> None:
    breaking = (
        "import sjepa_kernels.selfcheck.checks as s\n"
        "good = s.scatter_mask_tokens\n"
        "s.scatter_mask_tokens = lambda *a, **k: good(*a, **k) + 1e-4\n"
    )
    result = python(breaking + RUN, KERNELS)
    assert result.returncode == 1, result.stdout + result.stderr
