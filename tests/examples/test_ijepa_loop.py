"""The I-JEPA loop learns to predict from the context, and its targets do not collapse."""

from __future__ import annotations

import re

import pytest

from examples.ijepa_loop import main


@pytest.mark.slow
def test_predictions_become_better_than_a_guess(capsys: pytest.CaptureFixture[str]) -> None:
    main(60)
    lines = capsys.readouterr().out.splitlines()
    found = [re.findall(r"(\d+\.\d+)", line) for line in lines]
    share, deviation = zip(*((float(a), float(b)) for a, b in found), strict=True)
    assert len(lines) == 5 and share[0] > 2
    assert share[-1] < 0.8, "better than the mean of all images"
    assert min(deviation) > 0.4
