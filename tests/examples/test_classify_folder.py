"""The example with scikit-learn tells planted classes apart; `make docs` runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is in the environment of `make docs` alone")

from examples.classify_folder import main
from sjepa_fast.data.synthetic import ACTIONS, synthetic_clip


@pytest.mark.filterwarnings("ignore")
def test_features_and_coordinates_tell_actions_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("kick", "clap"):
        (tmp_path / name).mkdir()
        for subject in range(20):
            clip = synthetic_clip(ACTIONS.index(name), subject, 1, 0)
            np.save(tmp_path / name / f"{subject}.npy", clip[0])
    main(str(tmp_path), "ntu25")
    head, *rows = capsys.readouterr().out.splitlines()
    assert head == "40 clips of 2 classes"
    assert [row.split()[0] for row in rows] == ["coordinates", "features"]
    assert all(float(row.split()[1]) > 70 for row in rows), "chance is 50"
