"""The commands and the FLOP table of docs/predictor.md are run and counted as they stand."""

import re
from pathlib import Path

import pytest

from sjepa_fast.config.presets import preset
from sjepa_fast.config.schema import TrainConfig, replace
from sjepa_fast.training.flops import step_flops
from tests.tiny import ROOT, flags, nucla_lines, run_documented

TEXT = (ROOT / "docs" / "predictor.md").read_text()
SHORT = {
    **{"optim.length": 2, "optim.warmup": 1, "optim.batch-size": 16, "model.depth": 1},
    **{"data.frames": 24, "eval.online-pool": "mean"},
}


def row_config(name: str) -> TrainConfig:
    ratio = {"half": 0.5, "a quarter": 0.25}.get(name.partition(", ")[2].split(" the")[0], 1.0)
    form = {"predictor": name.partition(",")[0]}
    one = replace(preset("sjepa-ntu60-xsub"), optim={"batch_size": 1})
    return replace(one, model=form, mask={"predict_ratio": ratio})


def test_flop_table_is_the_count() -> None:
    lines = re.findall(r"^\| ((?:joint|cross)[^|]*) \| ([\d.| ]+) \|$", TEXT, re.M)
    rows = [(name, numbers.split(" | ")) for name, numbers in lines]
    rows = [(name, numbers) for name, numbers in rows if len(numbers) == 5]
    assert len(rows) == 5
    for name, numbers in rows:
        found = step_flops(row_config(name))
        parts = (found.view_encoder, found.predictor, found.target_encoder, found.backward)
        assert numbers == [f"{part / 1e9:.2f}" for part in (*parts, found.total)], name


@pytest.mark.slow
def test_commands_run_one_after_another(
    data_root: Path, nucla: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, *grids = nucla_lines("docs/predictor.md", data_root)
    assert prepare == nucla_lines("docs/quickstart.md", data_root)[0], "it ran already"
    assert [words[2] for words in grids] == ["sjepa_fast.ablate"] * 2
    monkeypatch.chdir(nucla)
    for words in grids:
        run_documented([*words, *flags(SHORT)])
    table = (nucla / "runs/partial/ablation.md").read_text()
    assert re.search(r"^\| 0\.25 \|", table, re.M)
    assert (nucla / "runs/cross/ablation.png").stat().st_size > 0
