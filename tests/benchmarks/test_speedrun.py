"""`make speedrun`: what is timed and scored, what counts, and the table of the README."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import speedrun
from benchmarks.speedrun import page, run, run_once, table
from tests.tiny import ROOT

DATA = ROOT.parent / "shared" / "data"
SEED = {"seed": 0, "seconds": 10.0, "top1": 81.0, "top1_without_copies": 76.0}


@pytest.mark.slow
def test_one_seed_is_prepared_trained_and_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (DATA / "nucla").is_dir():
        pytest.skip("N-UCLA's raw file is not here")
    short = "--optim.length 4 --optim.warmup 1 --compile off --log.every 2"
    monkeypatch.setattr(speedrun, "TRAIN", f"sjepa-nucla {short}")
    found = run_once(DATA, 0)
    parts = sum(found[key] for key in ("prepare_s", "train_s", "score_s"))
    assert found["seconds"] == pytest.approx(parts, abs=0.2)
    # Of clips that have copies among the training clips, all are found.
    assert 20 < found["top1_without_copies"] < found["top1"] < 90


@pytest.mark.parametrize("top1", [79.9, 80.0])
def test_a_recipe_counts_if_it_reaches_the_goal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, top1: float
) -> None:
    monkeypatch.setattr(speedrun, "RECORD", tmp_path / "record.json")
    monkeypatch.setattr(speedrun, "run_once", lambda *_: {**SEED, "top1": top1})
    assert run(DATA, (0, 1)) == (0 if top1 >= 80 else 1)
    assert (tmp_path / "record.json").exists() == (top1 >= 80)
    if top1 >= 80:
        run(DATA, (0, 1))
        record = json.loads((tmp_path / "record.json").read_text())
        assert len(record["rows"]) == 2 and "benchmarks.speedrun run" in record["command"]


def test_the_table_is_that_of_the_record_with_the_fastest_first() -> None:
    row = {"about": "slow", "machine": "m", "date": "d", "commit": "c", "seeds": [SEED]}
    fast = {**row, "about": "fast", "seeds": [{**SEED, "seconds": 4.0}, {**SEED, "seconds": 7.0}]}
    lines = table([row, fast]).splitlines()
    assert lines[2].startswith("| fast | 6 | 81.0 | 76.0 | m |") and "| slow | 10 |" in lines[3]
    written = page("a\n<!-- speedrun: begin -->\nold\n<!-- speedrun: end -->\nb\n", [row])
    assert written.startswith("a\n<!--") and written.endswith("<!-- speedrun: end -->\nb\n")
    assert "old" not in written and "| slow |" in written
    readme = speedrun.PAGE.read_text()
    assert page(readme, speedrun.recorded()) == readme
