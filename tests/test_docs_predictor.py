"""The commands and the FLOP table of docs/predictor.md are run and counted as they stand."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sjepa_fast.config.presets import preset
from sjepa_fast.config.schema import TrainConfig, replace
from sjepa_fast.training.flops import step_flops

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "predictor.md").read_text()
SHORT = ["--optim.length", "2", "--optim.warmup", "1", "--eval.online-pool", "mean"]


def row_config(name: str) -> TrainConfig:
    ratio = {"half": 0.5, "a quarter": 0.25}.get(name.partition(", ")[2].split(" the")[0], 1.0)
    form = {"predictor": name.partition(",")[0]}
    one = replace(preset("sjepa-ntu60-xsub"), optim={"batch_size": 1})
    return replace(one, model=form, mask={"predict_ratio": ratio})


def test_flop_table_is_the_count():
    lines = re.findall(r"^\| ((?:joint|cross)[^|]*) \| ([\d.| ]+) \|$", TEXT, re.M)
    rows = [(name, numbers.split(" | ")) for name, numbers in lines]
    rows = [(name, numbers) for name, numbers in rows if len(numbers) == 5]
    assert len(rows) == 5
    for name, numbers in rows:
        found = step_flops(row_config(name))
        parts = (found.view_encoder, found.predictor, found.target_encoder, found.backward)
        assert numbers == [f"{part / 1e9:.2f}" for part in (*parts, found.total)], name


@pytest.mark.slow
def test_commands_run_one_after_another(data_root: Path, tmp_path: Path):
    block = re.search(r"^```sh\n(.*?)^```", TEXT, re.M | re.S)
    assert block
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    for line in block[1].splitlines():
        words = shlex.split(line.replace("../shared/data", str(data_root)))[1:]
        words += SHORT if "sjepa_fast.ablate" in words else []
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, (line, done.stderr)
    table = (tmp_path / "runs/partial/ablation.md").read_text()
    assert re.search(r"^\| 0\.25 \|", table, re.M)
    assert (tmp_path / "runs/cross/ablation.png").stat().st_size > 0
