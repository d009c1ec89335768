"""A grid of tiny runs: complete, resumable, in one table whose figures are those of the runs."""

import json
import shutil
import statistics
from pathlib import Path

import pytest
import yaml

from sjepa_fast import ablate as ablation_module
from sjepa_fast.ablate import ablate, axis_named, finished, parse_ablation, spread
from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.errors import InputError
from tests.tiny import words_of_run


def arguments(run: Path, *more: str) -> list[str]:
    short = ("--optim.length=4", "--log.panel-every=2")
    return words_of_run(run.parent / "store", run, *short, *more)


GRID = ("--axis", "mask_ratio", "--values", "0.5", "0.9", "--seeds", "0", "3")


@pytest.fixture(scope="module")
def grid(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablate")
    (folder / "store").symlink_to(store)
    assert ablate(parse_ablation(arguments(folder / "grid", *GRID))) == 0
    return folder / "grid"


def scores(grid: Path, value: str) -> list[float]:
    files = [grid / f"mask.ratio-{value}-seed{s}/results/knn-before-after.json" for s in (0, 3)]
    return [json.loads(file.read_text())["after"] for file in files]


def test_table_and_json_hold_what_the_runs_scored(grid: Path) -> None:
    lines = (grid / "ablation.md").read_text().splitlines()
    assert "after 4 steps; mean [range] over seeds 0, 3." in lines[0]
    found = json.loads((grid / "ablation.json").read_text())
    assert found["axis"] == "mask.ratio" and list(found["values"]) == ["0.5", "0.9"]
    assert found["data"]["store"] == "synthetic" and found["environment"]["device"] == "cpu"
    for line, value in zip(lines[4:], ("0.5", "0.9"), strict=True):
        ours = scores(grid, value)
        assert [run["knn_after"] for run in found["values"][value]] == ours
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        mean = statistics.mean(ours)
        assert cells[0] == value
        assert cells[2] == f"{mean:.1f} [{min(ours):.1f}-{max(ours):.1f}]"
        before = statistics.mean(run["knn_before"] for run in found["values"][value])
        assert cells[3] == f"{mean - before:+.1f}"


def test_runs_differ_in_the_axis_and_the_seed_alone(grid: Path) -> None:
    trees = {p.parent.name: yaml.safe_load(p.read_text()) for p in grid.glob("*/config.yaml")}
    assert sorted(trees) == [f"mask.ratio-{v}-seed{s}" for v in ("0.5", "0.9") for s in (0, 3)]
    for name, tree in trees.items():
        value, seed = tree["mask"].pop("ratio"), tree.pop("seed")
        assert name == f"mask.ratio-{value}-seed{seed}"
        tree.pop("run")
    first, *rest = trees.values()
    assert all(tree == first for tree in rest)


def test_finished_runs_are_not_repeated_and_a_missing_one_is(
    grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = parse_ablation(arguments(grid, *GRID))
    assert all(finished(config) for configs in again.cells.values() for config in configs)
    lost = "mask.ratio-0.9-seed3"
    before = scores(grid, "0.9")
    shutil.rmtree(grid / lost)
    trained = []
    train = ablation_module.train
    monkeypatch.setattr(
        ablation_module, "train", lambda config: (trained.append(config.run.name), train(config))[1]
    )
    assert ablate(again) == 0
    assert trained == [lost]
    assert scores(grid, "0.9") == before, "the same run again"


def test_a_run_with_other_settings_is_not_taken_for_this_one(grid: Path) -> None:
    other = parse_ablation(arguments(grid, *GRID, "--optim.lr", "0.002"))
    with pytest.raises(InputError, match=r"optim\.lr"):
        ablate(other)


def test_an_interrupted_run_ends_the_grid(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation_module, "train", lambda config: 130)
    more = ("--axis", "mask.tau", "--values", "0.7", "0.8")
    assert ablate(parse_ablation(arguments(grid.parent / "other", *more))) == 130
    assert not (grid.parent / "other" / "ablation.md").exists()


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("mask.ratio", "mask.ratio"),
        ("mask_ratio", "mask.ratio"),
        ("mask-ratio", "mask.ratio"),
        ("ratio", "mask.ratio"),
        ("predictor", "model.predictor"),
        ("ema_start", "objective.ema_start"),
    ],
)
def test_names_of_an_axis(name: str, key: str) -> None:
    assert axis_named(name) == key


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--axis", "mask_rato", "--values", "1"), "mask.ratio"),
        (("--axis", "every", "--values", "1"), "log.every or checkpoint.every"),
        (("--axis", "kind", "--values", "random"), "mask.kind or objective.kind"),
        (("--axis", "seed", "--values", "1"), "is no key"),
        (("--axis", "eval.linear", "--values", "sgd"), "it is now eval.recipe"),
        (("--axis", "ratio"), "add --axis KEY --values"),
        (("--values", "0.8"), "add --axis KEY --values"),
        (("--axis", "ratio", "--values"), "has no value"),
        (("--axis", "ratio", "--values", "0.8", "0.8"), "given twice"),
        (("--axis", "ratio", "--values", "0.8", "1.5"), "strictly between 0 and 1"),
        (("--axis", "ratio", "--values", "high"), "mask.ratio"),
        (("--axis", "ratio", "--values", "[1]"), "plain values"),
        (("--axis", "predictor", "--values", "both"), "known: joint, cross"),
        (("--axis", "ratio", "--values", "0.8", "--seeds", "-1"), "whole numbers"),
        (("--axis", "ratio", "--values", "0.8", "--mask.raito", "1"), "--mask.ratio"),
    ],
)
def test_mistakes_are_named_before_anything_runs(
    tmp_path: Path, more: tuple[str, ...], said: str
) -> None:
    with pytest.raises(InputError) as error:
        parse_ablation(arguments(tmp_path / "grid", *more))
    assert said in str(error.value)
    assert not (tmp_path / "grid").exists()


def test_grid_needs_a_folder() -> None:
    with pytest.raises(InputError, match="add --run DIR"):
        parse_ablation(["sjepa-demo", "--axis", "ratio", "--values", "0.8"])


def test_words_stay_words_and_numbers_become_numbers(tmp_path: Path) -> None:
    grid = parse_ablation(arguments(tmp_path / "g", "--axis", "cuda_graph", "--values", "off"))
    assert [c.runtime.cuda_graph for c in grid.cells["off"]] == ["off"]
    grid = parse_ablation(arguments(tmp_path / "g", "--axis", "lr", "--values", "1e-4"))
    [config] = grid.cells["1e-4"]
    assert config.optim.lr == 1e-4 and config.resume == "auto"
    assert config.seed == TrainConfig().seed and config.run.name == "optim.lr-1e-4-seed0"
    grid = parse_ablation(arguments(tmp_path / "g", "--axis", "center", "--values", "true"))
    assert grid.cells["true"][0].data.center is True


def test_spread_is_the_mean_with_its_range() -> None:
    assert spread([70.04], 1) == "70.0"
    assert spread([70.0, 72.0, 74.6], 1) == "72.2 [70.0-74.6]"
