"""The trainer end to end on a tiny store: it runs, resumes exactly, stops cleanly, scales out."""

import importlib
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from sjepa_fast.build import build_model, build_optimizer
from sjepa_fast.config.files import parse_train
from sjepa_fast.data.clips import load_resident
from sjepa_fast.data.store import open_store
from sjepa_fast.data.synthetic import write_synthetic_store
from sjepa_fast.data.whiten import fit_whitening
from sjepa_fast.objectives.objective import make_step_input
from sjepa_fast.runtime.schedule import tabulate
from sjepa_fast.train import main, train
from sjepa_kernels.tubelets import to_tubelets
from tests.tiny import (
    CPU,
    Done,
    call,
    flags,
    metrics,
    run_python,
    start_python,
    wait_for_row,
    weights,
    words_of_run,
)

LONGER = {
    "data.split": "xsub",
    "optim.length": 12,
    "optim.warmup": 2,
    "log.every": 2,
    "log.panel-every": 4,
    "log.knn-every": 5,
    "log.to": "tensorboard",
    "checkpoint.every": 4,
}


def words(store: Path, run: Path, *more: str) -> list[str]:
    return words_of_run(store, run, *flags(LONGER), *more)


def call_train(store: Path, run: Path, *more: str) -> Done:
    return call(main, *words(store, run, *more))


@pytest.fixture(scope="module")
def finished(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    done = run_python("-m", "sjepa_fast.train", *words(store, run))
    assert done.returncode == 0, done.stderr
    assert "after training" in done.stdout
    return run


def test_run_folder_is_complete(finished: Path) -> None:
    first, *rows = metrics(finished)
    assert first.keys() == {"step", "knn"} and first["step"] == 0, "the score before training"
    assert [row["step"] for row in rows] == [2, 4, 5, 6, 8, 10, 12]
    assert [row["step"] for row in rows if "knn" in row] == [5, 10, 12]
    rows = [row for row in rows if row["step"] != 5]
    for key in ("loss", "lr", "momentum", "grad_norm", "clips_per_second", "ms_per_step"):
        assert all(row[key] == row[key] for row in rows), key
    assert "effective_rank" in rows[1] and "target_entropy" in rows[1]
    assert "effective_rank" not in rows[0]
    for name in (
        "config.yaml",
        "env.json",
        "train_ids.txt",
        "curves.png",
        "confusion.png",
        "mask.png",
        "report.html",
        "results/knn-before-after.json",
    ):
        assert (finished / name).stat().st_size > 0, name
    assert list((finished / "tensorboard").iterdir())
    kept = sorted(p.name for p in (finished / "checkpoints").iterdir())
    assert kept == ["step-00000008", "step-00000012"]


def test_training_moves_view_encoder_by_optimiser_and_target_by_ema(finished: Path) -> None:
    first, last = weights(finished, 8), weights(finished, 12)
    for name in (
        "view_encoder.embed.proj.weight",
        "target_encoder.embed.proj.weight",
        "predictor.mask_token",
        "center",
    ):
        assert not torch.equal(first[name], last[name]), name


def test_resumed_run_has_the_same_weights_as_an_uninterrupted_one(
    store: Path, finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "parts"
    process = start_python("-m", "sjepa_fast.train", *words(store, run, "--log.every", "1"))
    wait_for_row(run, 5, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    stopped = sorted((run / "checkpoints").glob("step-*"))[-1]
    assert 5 <= int(stopped.name[5:]) < 12
    resumed = call_train(store, run, "--resume", "auto")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed at step" in resumed.stdout
    ours, theirs = weights(run), weights(finished)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    steps = [row["step"] for row in metrics(run)]
    assert steps == sorted(set(steps)), "no step is logged twice"


def test_a_torn_row_of_the_metrics_does_not_stop_a_resume(store: Path, tmp_path: Path) -> None:
    run = tmp_path / "torn"
    assert call_train(store, run, "--optim.length", "4").returncode == 0
    written = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(written + '{"step": 5, "lo')
    resumed = call_train(store, run, "--optim.length", "4", "--resume=auto")
    assert resumed.returncode == 0, resumed.stderr
    assert (run / "metrics.jsonl").read_text() == written
    (run / "metrics.jsonl").write_text("{\n" + written)
    broken = call_train(store, run, "--optim.length", "4", "--resume", "auto")
    assert broken.returncode == 2 and "line 1" in broken.stderr, broken.stderr


def test_other_data_or_a_damaged_state_is_not_resumed(store: Path, tmp_path: Path) -> None:
    run, own = tmp_path / "run", tmp_path / "store"
    shutil.copytree(store, own)
    assert call_train(own, run, "--optim.length", "4").returncode == 0
    ids = (run / "train_ids.txt").read_bytes()
    (run / "checkpoints" / "step-best").mkdir()
    again = ["--optim.length", "4", "--resume", "auto"]
    assert call_train(own, run, *again).returncode == 0, "step-best is none"
    newest = sorted((run / "checkpoints").glob("step-0*"))[-1]
    whole = (newest / "state.safetensors").read_bytes()
    (newest / "state.safetensors").write_bytes(b"")
    done = call_train(own, run, *again)
    assert done.returncode == 2 and "state.safetensors" in done.stderr, done.stderr
    (newest / "state.safetensors").write_bytes(whole)
    shutil.rmtree(own)
    write_synthetic_store(own, subjects=6, repetitions=1)
    done = call_train(own, run, *again)
    assert done.returncode == 2 and "data.root" in done.stderr, done.stderr
    assert (run / "train_ids.txt").read_bytes() == ids


def test_only_training_clips_reach_the_step_and_it_follows_the_schedules(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("sjepa_fast.training.loop")
    seen: list[torch.Tensor] = []

    class Recorder(module.TrainStep):  # type: ignore[name-defined]
        def __call__(self, ids_B: torch.Tensor) -> Any:
            seen.append(ids_B.clone())
            Recorder.last = self
            return super().__call__(ids_B)

    monkeypatch.setattr(module, "TrainStep", Recorder)
    handler = signal.getsignal(signal.SIGINT)
    config = parse_train(words(store, tmp_path / "run", "--data.no-skip-empty-bodies"))
    assert train(config) == 0
    assert signal.getsignal(signal.SIGINT) is handler
    opened = open_store(store)
    train_part = set(opened.ids(config.data.split, "train").tolist())
    drawn = torch.cat(seen)
    assert set(drawn.tolist()) <= train_part and len(set(drawn.tolist())) > len(train_part) / 2
    expected = tabulate(config, 12, 2, CPU)
    assert len(seen) == 12
    assert torch.equal(Recorder.last.schedule.rates_S, expected.rates_S)
    assert torch.equal(Recorder.last.schedule.momenta_S, expected.momenta_S)
    logged = {row["step"]: row for row in metrics(tmp_path / "run") if "lr" in row}
    assert logged[12]["lr"] == pytest.approx(expected.rates_S[11].item(), rel=1e-6)
    assert logged[12]["momentum"] == pytest.approx(expected.momenta_S[11].item(), rel=1e-6)
    clips = Recorder.last.clips
    ids = torch.tensor(sorted(train_part))
    bodies = clips.eval_crop(ids, config.data).flatten(0, 1)
    present = (bodies != 0).flatten(1).any(dim=1)
    tokens = to_tubelets(bodies[present], config.model.segment_length).flatten(0, 1)
    mean, matrix = fit_whitening(tokens, config.data.whiten)
    embed = Recorder.last.model.target_encoder.embed
    torch.testing.assert_close(embed.whiten_mean, mean)
    torch.testing.assert_close(embed.whiten_matrix, matrix)


@pytest.mark.slow
def test_two_processes_follow_one(store: Path, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "two"
    # Without the two dashes the launcher takes --run for an abbreviation of its own --run-path.
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    launcher += ["-m", "--", "sjepa_fast.train"]
    both = run_python(*launcher, *words(store, run, "--runtime.dtype", "float32"))
    assert both.returncode == 0, both.stderr[-2000:]
    alone = call_train(store, tmp_path / "one", "--runtime.dtype", "float32")
    assert alone.returncode == 0, alone.stderr
    one, two = weights(tmp_path / "one"), weights(run)
    # Sums are added in another order, and AdamW divides by tiny second moments early on.
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=2e-3, atol=2e-4, msg=name)
    losses = [[row["loss"] for row in metrics(r)[1:]] for r in (tmp_path / "one", run)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--data.root", "nowhere"], ["data.root", "nowhere", "prepare"]),
        (["--mask.ratio", "1"], ["mask.ratio", "1.0"]),
        (["--optim.batch-size", "100000"], ["optim.batch_size", "100000"]),
        (["--data.split", "xsubb"], ["data.split", "xsubb", "xsub"]),
        (["--data.frames", "2"], ["data.frames", "2", "segment"]),
        (["--mask.raito", "0.8"], ["mask.raito", "mask.ratio"]),
        (["--data.bodies", "1"], ["data.bodies", "2"]),
        (["--run", "/proc/nope"], ["run", "/proc/nope"]),
        (["--runtime.device", "gpu7"], ["runtime.device", "gpu7"]),
        (["--optim.beta1", "1.5"], ["optim.beta1", "1.5"]),
        (["--view.rotation", "nan"], ["view.rotation", "nan"]),
    ],
)
def test_bad_input_exits_2_with_one_line(
    store: Path, tmp_path: Path, more: list[str], words: list[str]
) -> None:
    done = call_train(store, tmp_path / "bad", *more)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr
    assert not (tmp_path / "bad" / "checkpoints").exists()


def test_a_preset_without_data_is_refused_rather_than_trained_on_synthetic_data(
    tmp_path: Path,
) -> None:
    run = ["--run", str(tmp_path / "run")]
    for done in (
        run_python("-m", "sjepa_fast.train", "sjepa-nucla", *run),
        call(main, "sjepa-ntu60-xsub", *run),
    ):
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert "--data.root" in done.stderr and "--data.synthetic" in done.stderr
    assert not list(tmp_path.iterdir())


def test_starting_over_an_existing_run_or_resuming_with_other_settings_is_refused(
    store: Path, finished: Path
) -> None:
    before = weights(finished)
    again = call_train(store, finished)
    assert again.returncode == 2 and "--resume auto" in again.stderr
    other = call_train(store, finished, "--resume", "auto", "--mask.tau", "0.5")
    assert other.returncode == 2 and "mask.tau" in other.stderr
    for name, tensor in weights(finished).items():
        assert torch.equal(tensor, before[name])


def test_loss_falls_on_one_repeated_batch(store: Path) -> None:
    config = parse_train(words(store, Path("unused")))
    opened = open_store(store)
    clips = load_resident(opened, config.data, CPU)
    ids = torch.from_numpy(opened.ids("xsub", "train"))[:8]
    model = build_model(config, clips, ids, CPU)
    optimizer = build_optimizer(model, config)
    for group in optimizer.param_groups:
        group["lr"] = 3e-3
    zero = torch.tensor(0)
    batch = make_step_input(clips, ids, zero, zero, config)
    losses = []
    for _ in range(30):
        loss = model(batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
