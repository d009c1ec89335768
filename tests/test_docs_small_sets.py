"""What docs/small-sets.md says of the rule is so, and its commands run as they stand."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import pytest

from sjepa_fast.config import rule
from sjepa_fast.config.presets_small import SMALL, fitted, unfitted
from tests.tiny import ROOT, blocks, flags, run_documented
from tests.tiny import SMALL as SHORT

TEXT = (ROOT / "docs" / "small-sets.md").read_text()
PLAIN = " ".join(TEXT.split())


def test_the_table_is_the_rule() -> None:
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.*) \|$", TEXT, re.M))
    assert tuple(rows) == rule.KEYS
    least, most = rule.FRAMES
    assert f"in steps of {4 * rule.SEGMENTS}" in rows["data.frames"]
    assert rows["data.frames"].endswith(f"{least} to {most}")
    ratio, views = unfitted("mamp").mask.ratio, unfitted("multiview").mask.ratio
    masked = f"{ratio} (multi-view: {views}), less where fewer than {rule.LEAST_VISIBLE} tokens"
    assert rows["mask.ratio"].startswith(masked)
    assert rows["mask.ratio"].endswith(f"at least {rule.LEAST_MASKED}")
    least, most = rule.BATCHES
    assert f"gives {rule.BATCHES_IN_A_PASS} batches in" in rows["optim.batch_size"]
    assert f"{least} to {most}" in rows["optim.batch_size"]
    least, most = rule.STEPS
    assert rows["optim.length"] == (
        f"{rule.PASSES} passes, {least} to {most:,} steps, and no more work than {most:,} steps "
        "of 64 x 160 tokens"
    )
    assert rule.TOKENS_IN_A_STEP == 64 * 160
    steps = unfitted("mamp").optim.warmup
    assert rows["optim.warmup"] == f"{steps} steps, a twelfth of the run at most"
    assert rule.WARMUP_SHARE == 12
    assert (rows["data.whiten"], rows["model.layer_scale"]) == ("0.5", "1e-4")
    assert (rule.WHITEN, rule.LAYER_SCALE) == (0.5, 1e-4)
    assert f"Fewer than {rule.LEAST_CLIPS} training clips" in PLAIN


def test_the_example_is_what_is_said_of_nucla() -> None:
    (said,) = re.findall(r"^sjepa-small for nucla.*?(?=^```)", TEXT, re.M | re.S)
    found = replace(SMALL["nucla"].facts, why_split="same training clips as xview_clean")
    choices = fitted("sjepa", found)[1]
    assert said == f"sjepa-small for {found}:\n" + "".join(f"  {c}\n" for c in choices)


def test_the_table_of_known_sets_has_all_differences() -> None:
    older = {"data.whiten": 1.0, "model.layer_scale": 0.0}
    for name in ("nucla", "utkinect", "florence3d"):
        assert SMALL[name].differs == older
    msr = SMALL["msr_action3d"]
    assert msr.differs == {"model.layer_scale": 0.0, "optim.batch_size": 64, "optim.length": 600}
    chosen = fitted("sjepa", msr.facts)[0].optim
    assert (chosen.batch_size, chosen.length) == (32, 1300)


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    Path("my_clips").mkdir()
    rows = ["name,label,split"]
    for i in range(25):
        np.save(f"my_clips/c{i}.npy", draw.normal(size=(20, 17, 3)).astype(np.float32))
        rows.append(f"c{i},{'ab'[i % 2]},{'train' if i % 5 else 'test'}")
    Path("my_clips/labels.csv").write_text("\n".join(rows) + "\n")
    prepare, train, show = blocks("docs/small-sets.md", "sh")[0].splitlines()
    run_documented(shlex.split(prepare))
    short = {key: value for key, value in SHORT.items() if key.partition(".")[0] != "data"}
    short = {**short, "optim.length": 2, "optim.batch-size": 8}
    said = run_documented([*shlex.split(train), *flags(short)]).stdout
    assert said.startswith("sjepa-small for my_clips (20 training clips")
    assert Path("runs/mine/results/knn-before-after.json").is_file()
    assert "# mamp-small for my_clips" in run_documented(shlex.split(show)).stdout
    assert not Path("runs/mine-mamp").exists()


def measured(file: str) -> dict[tuple[object, ...], list[float]]:
    """1-NN, joint-pooled and mean-pooled linear, by what a row of a results file was run with."""
    rows = json.loads((ROOT / "benchmarks/results/cpu-2-cores" / file).read_text())["rows"]
    found = {}
    for row in rows:
        length = {"nucla": 900, "msr_action3d": 600}.get(row["set"])
        if (row["optim.length"], row["mask.ratio"]) == (length, 0.7):
            keys = ("set", "objective.kind", "seed", "data.whiten", "objective.ema_start")
            key = *(row[name] for name in keys), row.get("model.layer_scale", 0.0), row["optim.lr"]
            found[key] = [row[name] for name in ("knn_full", "linear_joint", "linear_mean")]
    return found


def cell(scores: list[float]) -> str:
    return " / ".join(f"{score:.1f}" for score in scores)


def test_the_table_of_whitening_and_layer_scale_is_what_was_measured() -> None:
    before, after = measured("validation.json"), measured("small_rule.json")
    sets = {"nucla": "N-UCLA", "msr_action3d": "MSR Action3D"}
    names = {"sjepa": "S-JEPA", "skeleton2vec": "Skeleton2vec", "mamp": "MAMP"}
    lines = []
    for (data, kind, seed, whiten, ema, scale, rate), scores in after.items():
        older = before.get((data, kind, seed, 0.5 if data[0] == "m" else 1.0, ema, 0.0, rate))
        if (whiten, scale) != (0.5, 1e-4) or older is None:
            continue
        change = mean(scores) - mean(older)
        where = f"{sets[data]}, {names.get(kind, 'SkeletonMAE')}, {seed}"
        lines.append(f"| {where} | {cell(older)} | {cell(scores)} | {change:+.1f} |")
    assert len(lines) >= 8
    (table,) = re.findall(r"^\| set, objective, seed .*\n\| -.*\n((?:\|.*\n)+)", TEXT, re.M)
    assert sorted(table.splitlines()) == sorted(lines)


def test_the_rows_beside_the_table_are_what_was_measured() -> None:
    after = measured("small_rule.json")
    for whiten, scale in ((0.5, 0.0), (1.0, 1e-4)):
        assert cell(after["nucla", "sjepa", 0, whiten, 0.99, scale, 1e-3]) in PLAIN
    again = ("msr_action3d", "mamp", 0, 0.5, 0.99, 0.0, 1e-3)
    assert after[again] == measured("validation.json")[again]
