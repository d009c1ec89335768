"""The SLURM example: its command is one of ours, and a signal makes it save and come back."""

import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import parse_args

from sjepa_fast.config.files import parse_train
from tests.tiny import ROOT

SCRIPT = ROOT / "examples/slurm.sh"
# Stands in for srun: says with what it was started, and ends a moment after it is told to.
SRUN = """#!/bin/bash
printf '%s\\n' "$@" > "$CALLS/srun"
trap 'sleep 0.2; echo saved > "$CALLS/saved"; exit 143' TERM
if [ -n "$DONE" ]; then exit "$DONE"; fi
sleep 30 & wait
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo node7; echo node8; exit; fi
[ -e "$CALLS/saved" ] || echo early >> "$CALLS/scontrol"
echo "$@" >> "$CALLS/scontrol"
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2"}
    return {"PATH": f"{programs}:/usr/bin:/bin", "CALLS": str(tmp_path), "DONE": "", **job}


def started(calls: Path) -> list[str]:
    limit = time.monotonic() + 20
    while not (calls / "srun").exists() and time.monotonic() < limit:
        time.sleep(0.02)
    time.sleep(0.1)
    return (calls / "srun").read_text().splitlines()


def test_its_syntax_is_that_of_bash() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


def test_launcher_and_trainer_understand_its_command(
    environment: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = subprocess.run(["bash", str(SCRIPT)], env=environment | {"DONE": "3"}, check=False)
    assert done.returncode == 3, "the job ends as the run ended"
    program, *words = started(tmp_path)
    assert program == "torchrun" and not (tmp_path / "scontrol").exists()
    parsed = parse_args(words)
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.max_restarts) == ("2", "8", 3)
    assert (parsed.rdzv_endpoint, parsed.rdzv_id) == ("node7:29500", "77")
    assert parsed.module and parsed.training_script == "sjepa_fast.train"
    with pytest.raises(SystemExit) as stop:
        parse_train([*parsed.training_script_args, "--print-config"])
    assert stop.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["resume"] == "auto" and config["run"] == "runs/ntu60"
    directives = [line.split() for line in SCRIPT.read_text().splitlines() if "#SBATCH" in line]
    asked = dict(word.split("=") for _, word in directives if "=" in word)
    assert asked["--gpus-per-node"] == parsed.nproc_per_node and asked["--ntasks-per-node"] == "1"


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_saves_first_and_then_requeues(
    number: signal.Signals, environment: dict[str, str], tmp_path: Path
) -> None:
    job = subprocess.Popen(["bash", str(SCRIPT)], env=environment)
    started(tmp_path)
    job.send_signal(number)
    assert job.wait(timeout=20) == 0
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "scontrol").read_text() == "requeue 77\n"
    assert "USR1@300" in shlex.join(SCRIPT.read_text().split())
