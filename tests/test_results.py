"""`sjepa_fast.results`: one table of a run's scores beside its baselines, and of several seeds."""

from __future__ import annotations

import json
from pathlib import Path

from sjepa_fast import results
from tests.tiny import call


def run_with(folder: Path, **scores: object) -> Path:
    (folder / "results").mkdir(parents=True)
    for name, content in scores.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / "results" / f"{name}.json").write_text(text)
    return folder


def linear(headline: float, **beside: float) -> dict[str, object]:
    rows = {label: {"headline": value} for label, value in beside.items()}
    return {
        "protocol": "linear",
        "features": 1280,
        "headline": headline,
        "standard_error": 1.86,
        "beside": rows,
    }


def test_a_run_beside_its_baselines(tmp_path: Path) -> None:
    run = run_with(
        tmp_path / "run",
        linear_joint=linear(76.1, raw=70.0, random=69.0),
        old={"protocol": "knn", "headline": 60.0},
        **{"knn-before-after": {"pool": "full", "before": 1.0, "after": 2.0}, "broken": "{"},
    )
    done = call(results.main, run)
    assert done.returncode == 0, done.stderr
    head, first, second, *notes = done.stdout.splitlines()
    assert " ".join(head.split()) == "result numbers per clip score s.e. raw random scratch"
    assert first.split() == ["linear_joint", "1280", "76.1", "1.9", "70.0", "69.0", "-"]
    assert second.split() == ["old", "-", "60.0", "-", "-", "-", "-"]
    assert len(notes) == 1
    # Columns end under their heads.
    assert first.index("76.1") + 4 == head.index("score") + len("score")


def test_several_runs_are_seeds(tmp_path: Path) -> None:
    values = {0: 70.0, 1: 74.0, 2: 72.0}
    runs = [
        run_with(tmp_path / f"run{k}", linear=linear(v, raw=60.0), **{f"only{k}": linear(1.0)})
        for k, v in values.items()
    ]
    done = call(results.main, *runs)
    line = next(text for text in done.stdout.splitlines() if text.startswith("linear "))
    assert "72.0 ± 2.0 (3)" in line
    assert "60.0" in line
    assert "standard deviation over runs" in done.stdout


def test_no_results_and_no_runs(tmp_path: Path) -> None:
    done = call(results.main, tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        f"run: {tmp_path} has no results; score it with sjepa_fast.evaluate first\n"
    )
    done = call(results.main)
    assert (done.returncode, done.stderr) == (
        2,
        "run: not given; name one or more run folders\n",
    )


def test_names_cannot_reach_the_terminal_raw(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", **{"a\x1b[31m": linear(1.0)})
    assert "\x1b" not in call(results.main, run).stdout
