"""What the page says of runs: their own records, folded over seeds."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.metrics import accuracy
from sjepa_fast.reporting.records import described, differing, folded, read_run_records
from tests.reporting.runs import data_of
from tests.tiny import metrics


def another(run: Path, folder: Path, seed: int, edit: Callable[[str], str] = str) -> Path:
    """A run as another seed would have left it: other losses and scores."""
    shutil.copytree(run, folder)
    config = (folder / "config.yaml").read_text()
    config = config.replace("seed: 0", f"seed: {seed}").replace(str(run), str(folder))
    (folder / "config.yaml").write_text(edit(config))
    rows = [{**row, "loss": row["loss"] + seed} if "loss" in row else row for row in metrics(run)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "results" / "knn-before-after.json"
    score = json.loads(path.read_text())
    path.write_text(json.dumps(score | {"after": score["after"] + 3 * seed}))
    return folder


def test_confusion_is_written_with_the_score_that_it_gives(sjepa_run: Path) -> None:
    run = read_run_records(sjepa_run)
    assert run.confusion is not None and run.records.scores is not None
    names, cells = run.confusion
    pairs = torch.tensor([[t, p] for t, p, count in cells for _ in range(count)])
    assert len(names) == 14 and len(pairs) > 14
    assert accuracy(pairs[:, 1], pairs[:, 0]) == pytest.approx(run.records.scores[1])


def test_seeds_are_folded_and_settings_stand_side_by_side(sjepa_run: Path, tmp_path: Path) -> None:
    paths = [
        sjepa_run,
        another(sjepa_run, tmp_path / "b", 1),
        another(sjepa_run, tmp_path / "c", 2, lambda text: text.replace("mask:\n", "mask:\n")),
        another(sjepa_run, tmp_path / "d", 3, lambda text: text.replace("\n  lr: ", "\n  lr: 1")),
    ]
    groups = folded([read_run_records(path) for path in paths])
    assert [[run.folder for run in group] for group in groups] == [paths[:3], paths[3:]]
    assert differing(groups) == ["optim.lr"]
    found = described(groups[0], "three")
    assert found["seeds"] == [0, 1, 2]
    loss = next(curve for curve in found["curves"] if curve["key"] == "loss")
    rows = {row["step"]: row["loss"] for row in metrics(sjepa_run) if "loss" in row}
    assert loss["steps"] == sorted(rows)
    # Seeds were made to lie at 0, 1 and 2.
    assert loss["mean"] == pytest.approx([rows[s] + 1 for s in loss["steps"]], rel=1e-3)
    assert loss["error"] == pytest.approx([1 / 3**0.5] * len(rows), rel=1e-3)
    scores = [read_run_records(path).records.scores for path in paths[:3]]
    after = [pair[1] for pair in scores if pair is not None]
    assert found["knn"]["after"] == pytest.approx((statistics.mean(after), 3 / 3**0.5))
    cells = {(t, p): n for t, p, n in found["confusion"]["cells"]}
    one = read_run_records(sjepa_run).confusion
    assert one is not None
    assert cells == {(t, p): 3 * n for t, p, n in one[1]}


def test_one_run_has_curves_without_errors_and_measured_passes(sjepa_run: Path) -> None:
    found = described([read_run_records(sjepa_run)], "run")
    assert not any("error" in curve for curve in found["curves"])
    assert {curve["key"] for curve in found["curves"]} >= {"loss", "knn", "effective_rank", "lr"}
    assert [name for name, _ in found["speed"]][:2] == ["ms per step", "clips per second"]
    score = json.loads((sjepa_run / "results" / "knn-before-after.json").read_text())
    assert found["knn"]["raw"] == score["raw"] > 0
    assert "optim:\n" in found["config"]
    assert found["environment"]["device"] == "cpu"


def test_passes_are_counted_where_none_were_measured(sjepa_run: Path, tmp_path: Path) -> None:
    copy = another(sjepa_run, tmp_path / "copy", 0)
    (copy / "profile").mkdir(exist_ok=True)
    profile = {"seconds": {"data": 0.25, "teacher": 0.5}, "peak_mib": 3.0}
    counted = described([read_run_records(copy)], "run")["passes"]
    (copy / "profile" / "profile.json").write_text(json.dumps(profile))
    measured = described([read_run_records(copy)], "run")["passes"]
    assert measured["measured"] and not counted["measured"]
    assert measured["parts"] == [("data", 250.0), ("teacher", 500.0)]
    shares = dict(counted["parts"])
    assert shares.keys() == {"student", "predictor", "teacher", "backward"}
    assert shares["backward"] > shares["student"] > 0


def test_one_value_is_no_curve(sjepa_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(sjepa_run, copy)
    (copy / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.0, "knn": 0.5}\n{"step": 2, "loss": 1.0}\n'
    )
    found = described([read_run_records(copy)], "run")["curves"]
    assert [curve["key"] for curve in found] == ["loss"]


def test_long_curves_are_thinned_with_both_ends(sjepa_run: Path, tmp_path: Path) -> None:
    copy = another(sjepa_run, tmp_path / "long", 0)
    rows = [{"step": step, "loss": 1 / step} for step in range(1, 5001)]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (curve,) = described([read_run_records(copy)], "run")["curves"]
    assert len(curve["steps"]) == 300
    assert (curve["steps"][0], curve["steps"][-1]) == (1, 5000)


@pytest.mark.parametrize(
    ("file", "value"),
    [
        ("results/knn-before-after.json", {"confusion": [[0, 99, 1]], "classes": ["a"]}),
        ("results/knn-before-after.json", {"confusion": [[0, 0]], "classes": ["a"]}),
        ("results/knn-before-after.json", {"confusion": [[0, 0, 1]]}),
        ("profile/profile.json", {"seconds": {"data": "x"}, "peak_mib": 1.0}),
        ("profile/profile.json", {"seconds": 3}),
        ("data.json", None),
    ],
)
def test_damaged_records_are_one_line(
    sjepa_run: Path, tmp_path: Path, file: str, value: dict[str, Any] | None
) -> None:
    copy = another(sjepa_run, tmp_path / "copy", 0)
    path = copy / file
    path.parent.mkdir(exist_ok=True)
    whole = {"before": 1.0, "after": 2.0} if "knn" in file else {}
    path.write_text("{" if value is None else json.dumps(whole | value))
    with pytest.raises(InputError, match="run: ") as raised:
        read_run_records(copy)
    assert "\n" not in str(raised.value)


def test_the_page_of_a_run_has_what_is_said_of_it(sjepa_run: Path) -> None:
    data = data_of(sjepa_run / "report.html")
    (group,) = data["groups"]
    wanted = json.loads(json.dumps(described([read_run_records(sjepa_run)], "run-a")))
    assert {key: group[key] for key in wanted} == wanted
