"""The ablation of the strong recipe: what its rows change, what is left to do, and its table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ablate_recipe import (
    COMPONENTS,
    ROWS,
    SETS,
    STRONG,
    Cell,
    cells,
    collect,
    jobs,
    table,
    verdict,
)
from sjepa_fast import evaluate
from sjepa_fast.config.presets import PRESETS
from sjepa_fast.data.store import Store
from sjepa_fast.data.synthetic import write_synthetic_store
from sjepa_fast.evaluation.recipes import finetune_recipe
from tests.tiny import flags


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("data") / "synthetic"
    return write_synthetic_store(root, subjects=2, repetitions=1, cameras=2)


def recipe(store: Store, words: str) -> dict[str, Any]:
    import dataclasses

    where = ["runs/none", "--data.root", str(store.root), "--data.split", "xview"]
    request = evaluate.parse_request("supervised", [*where, *words.split()])
    return dict(leaves(dataclasses.asdict(request.recipe)))


def test_every_row_leaves_out_its_component_alone(store: Store) -> None:
    whole = recipe(store, ROWS[STRONG])
    assert whole["name"] == "strong"
    changed = {}
    for name in COMPONENTS:
        told = recipe(store, ROWS[f"without {name}"])
        changed[name] = {key for key, value in told.items() if value != whole[key]}
    assert changed.pop("length") == {"length", "warmup"}
    assert all(len(keys) == 1 for keys in changed.values()), changed
    without = recipe(store, ROWS["without mixup and time pyramid"])
    assert {key for key in whole if whole[key] != without[key]} == {"mixup", "pool"}
    now = recipe(store, "")
    changed_since = {key for key in without if without[key] != now[key]}
    assert changed_since == {"length", "warmup", "score_every", "token_drop"}
    small = recipe(store, ROWS["without all but length"])
    touched = set().union(*changed.values())
    # What the small recipe does not have is what the rows leave out, one by one.
    assert {k for k in whole if whole[k] != small[k]} == touched | {"name", "score_every"}
    for key in touched:
        assert small[key] in (0, 1, "run", "joint"), key


def test_what_is_left_is_listed_and_tabulated(tmp_path: Path) -> None:
    assert all(f"sjepa-{store}" in PRESETS for store in SETS)
    every = list(cells(tmp_path))
    assert len({cell.run for cell in every}) == len(every) == 3 * len(SETS) * len(ROWS)
    for cell in every:
        if cell.seed > 1 or cell.row not in (STRONG, "without mixup", "without scale"):
            continue
        top1 = {STRONG: 80.0, "without mixup": 77.0, "without scale": 80.5}[cell.row]
        kept = dict.fromkeys(
            ("store", "split", "store_fingerprint", "seeds", "recipe", "train_clips", "test_clips")
        )
        kept |= dict.fromkeys(("device", "dtype", "torch", "threads"))
        cell.file.parent.mkdir(parents=True)
        values = kept | {"top1": top1 + cell.seed * (1 if cell.row != "without scale" else -2)}
        cell.file.write_text(json.dumps(values))
    listed = jobs(tmp_path / "data", tmp_path, (0, 1, 2))
    left = [job for job in listed if not job.file.exists()]
    assert [job.words[0] for job in left if job.module == "sjepa_fast.prepare"] == list(SETS)
    trainings = [job for job in left if job.module == "sjepa_fast.evaluate"]
    assert len(trainings) == len(every) - 2 * len(SETS) * 3
    assert all(set(job.needs) <= {job.name for job in listed} for job in trainings)
    assert len({job.name for job in listed}) == len(listed)
    content = collect(tmp_path, (0, 1, 2))
    lines = table(content).splitlines()
    assert "| N-UCLA | strong | 80.5 ± 0.7 |  |  |" in lines
    assert "| N-UCLA | without mixup | 77.5 ± 0.7 | +3.0 (+3.0 +3.0) | helps |" in lines
    assert "| N-UCLA | without scale | 79.5 ± 1.4 | +1.0 (-0.5 +2.5) | neutral |" in lines
    assert len(lines) == 2 + 3 * len(SETS)


def test_verdicts() -> None:
    assert verdict([1.0]) == "one seed"
    assert verdict([1.0, 1.2, 0.9]) == "helps"
    assert verdict([-1.0, -1.2, -0.9]) == "hurts"
    assert verdict([0.1, 3.0, 0.2]) == "neutral", "all agree, within their noise"
    assert verdict([2.0, 2.1, -0.1]) == "neutral"


def test_a_cell_is_trained_and_then_done(store: Store, tmp_path: Path) -> None:
    from sjepa_fast.config.presets import preset

    cell = Cell("nucla", "without mixup", 0, tmp_path / "run")
    words = cell.words(tmp_path)
    assert words[:2] == ["supervised", str(cell.run)] and "val" in words
    assert words[-2:] == ["--recipe.mixup", "0"]
    strong = finetune_recipe("auto", preset("sjepa-nucla"), scratch=True)
    assert strong.mixup == 0
    short = {"recipe.length": 2, "recipe.warmup": 1, "recipe.batch-size": 8, "recipe.hidden": 8}
    words[words.index("--data.root") + 1] = str(store.root)
    words[words.index("--data.split") + 1] = "xview"
    assert evaluate.run([*words, *flags(short)]) == 0
    found = json.loads((cell.run / "results" / "supervised-synthetic-xview.json").read_text())
    assert found["recipe"]["mixup"] == 0 and found["recipe"]["name"] == "strong"
