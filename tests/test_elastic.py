"""A run goes on with another number of processes, and after a host has died."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from sjepa_fast.runtime.lock import lock_run
from tests.hosts import Host, kill_all, two_hosts
from tests.tiny import (
    flags,
    metrics,
    start_python,
    torchrun,
    trained,
    wait_for_row,
    weights,
    words_of_run,
)

# Sums are added in another order; 4.8e-7 was seen. Losses are between 3 and 17.
LOSS = 5e-6
SIZES = {
    "data.split": "xsub",
    "optim.length": 40,
    "optim.warmup": 4,
    "checkpoint.every": 4,
    "checkpoint.keep": 20,
    "runtime.dtype": "float32",
    "log.panel-every": 40,
    "resume": "auto",
}
HALFWAY = 20
# Or torch's launcher tells a host that comes back nothing of where the others are.
SHARE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


@pytest.fixture(scope="module")
def alone(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(store, tmp_path_factory.mktemp("elastic") / "alone", *flags(SIZES))


@pytest.fixture(scope="module")
def together(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return by_two(store, tmp_path_factory.mktemp("elastic") / "together")


def by_two(store: Path, run: Path) -> Path:
    words = words_of_run(store, run, *flags(SIZES))
    done = torchrun(2, "-m", "--", "sjepa_fast.train", *words)
    assert done.returncode == 0, done.stderr
    return run


def first_half(run: Path, out: Path) -> Path:
    """A copy of a run as it was at half its length."""
    shutil.copytree(run, out)
    for folder in (out / "checkpoints").glob("step-*"):
        if int(folder.name[5:]) > HALFWAY:
            shutil.rmtree(folder)
    return out


def losses(run: Path) -> torch.Tensor:
    found = {row["step"]: row["loss"] for row in metrics(run) if "loss" in row}
    assert list(found) == list(range(1, 41)), "every step is logged once"
    return torch.tensor(list(found.values()), dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_goes_on_with_another_number_of_processes(
    processes: int, store: Path, alone: Path, together: Path, tmp_path: Path
) -> None:
    begun = {1: together, 2: alone}[processes]
    run = first_half(begun, tmp_path / "run")
    if processes == 1:
        trained(store, run, *flags(SIZES))
    else:
        by_two(store, run)
    ours, theirs = losses(run), losses(begun)
    assert torch.equal(ours[:HALFWAY], theirs[:HALFWAY]), "what was trained before stays"
    print(f"{begun.name}, then {processes}: {(ours - theirs).abs().max():.1e}")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=LOSS)
    torch.testing.assert_close(losses(alone), losses(together), rtol=0, atol=LOSS)


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["at its start", "at a save"])
def test_where_one_process_ends_the_others_say_so_in_one_line(
    ends: str, store: Path, tmp_path: Path
) -> None:
    """The one that writes meets a locked or a deleted folder; the other has lost its connection."""
    run = tmp_path / "run"
    run.mkdir()
    words = ["-m", "--", "sjepa_fast.train", *words_of_run(store, run, *flags(SIZES))]
    if ends == "at its start":
        with lock_run(run):
            stderr = torchrun(2, *words).stderr
        reason = "is in use by process"
    else:
        (run / "checkpoints").write_text("in the way")
        stderr = torchrun(2, *words).stderr
        reason = "cannot write the checkpoint"
    lines = stderr.splitlines()
    assert sum(reason in line for line in lines) == 1, stderr
    other = "process 1 ends because another has ended, whose own line says why"
    assert lines.count(other) == 1, stderr
    # The launcher has a traceback of its own.
    assert "sjepa_fast/" not in stderr.replace(str(run), ""), stderr


@pytest.mark.slow
def test_a_launcher_that_is_told_to_end_lets_the_run_save_where_it_is(
    store: Path, alone: Path, tmp_path: Path
) -> None:
    """What a scheduler's signal comes to; nothing else would have saved."""
    run = tmp_path / "run"
    rarely = ("--checkpoint.every", "1000")
    words = words_of_run(store, run, *flags(SIZES), *rarely)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = start_python(*launcher, "-m", "--", "sjepa_fast.train", *words)
    wait_for_row(run, 5, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    (saved,) = (run / "checkpoints").glob("step-*")
    assert 5 <= int(saved.name[5:]) < 40 and "SIGTERM" in errors, errors
    trained(store, run, *flags(SIZES), *rarely)
    torch.testing.assert_close(losses(run), losses(alone), rtol=0, atol=LOSS)


@pytest.mark.slow
def test_a_host_is_killed_and_comes_back_and_the_run_ends_as_if_nothing_had_happened(
    store: Path, together: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with two_hosts() as (first, second, what), (tmp_path / "first").open("w+") as said:
        print(what)

        def launch(host: Host, hosts_store: str) -> list[str]:
            words = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-id=two"]
            words += ["--rdzv-backend=c10d", f"--rdzv-endpoint={first.address}:29411"]
            words += [f"--local-addr={host.address}", "--monitor-interval=0.1"]
            # A dead host is missed after three seconds instead of fifteen.
            words += [f"--rdzv-conf=is_host={hosts_store},keep_alive_interval=1"]
            words = ["-m", "torch.distributed.run", *words, "-m", "--", "sjepa_fast.train"]
            return [*words, *words_of_run(store, run, *flags(SIZES))]

        leader = first.python(*launch(first, "true"), out=said, **SHARE)
        other = second.python(*launch(second, "false"), out=said, **SHARE)
        try:
            reached(run, 4, leader)
            kill_all(other)
            kept = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
            assert kept[-1] < "step-00000040", "it was killed in the middle"
            other = second.python(*launch(second, "false"), out=said, **SHARE)
            codes = leader.wait(timeout=120), other.wait(timeout=30)
        finally:
            kill_all(leader)
            kill_all(other)
        said.seek(0)
        text = said.read()
    assert codes == (0, 0), text
    assert "resumed at step" in text, text
    expected = weights(together)
    for name, tensor in weights(run).items():
        assert torch.equal(tensor, expected[name]), name
    assert torch.equal(losses(run), losses(together))


def reached(run: Path, step: int, process: subprocess.Popen[str], seconds: float = 90) -> None:
    """Wait until a run has saved a step."""
    limit = time.monotonic() + seconds
    folder = run / "checkpoints" / f"step-{step:08d}"
    while not folder.exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.005)
    assert folder.exists(), "the run did not start"
