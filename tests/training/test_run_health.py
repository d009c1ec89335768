"""What a run does about steps that are not finite: it goes on, counts, and stops with a reason."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sjepa_fast.config.files import read_config
from sjepa_fast.config.schema import replace
from sjepa_fast.config.traits import TRAITS
from sjepa_fast.data.order import BatchOrder
from sjepa_fast.data.rows import RowReader
from sjepa_fast.data.store import open_store
from sjepa_fast.runtime.checkpoint import list_checkpoints
from sjepa_fast.runtime.dist import World
from sjepa_fast.train import main
from sjepa_fast.training.diagnosis import replay
from sjepa_fast.training.health import Health, first_broken
from sjepa_fast.training.step import TrainStep
from tests.tiny import AIMS, call, flags, weights, words_of_run
from tests.training.test_step import make_step

STEPS: dict[str, object] = {"optim.length": 6, "optim.unit": "steps", "runtime.dtype": "float32"}
STEPS |= {
    "data.split": "xsub",
    "data.skip-empty-bodies": False,
    "checkpoint.every": 2,
    "log.panel-every": 6,
}
KINDS = list(TRAITS)


def words(store: Path, run: Path, changed: dict[str, object] | None = None) -> list[str]:
    return words_of_run(store, run, *flags({**STEPS, **(changed or {})}))


@contextmanager
def poisoned(bad: Callable[[int], bool], name: str = "view_encoder.norm.weight") -> Iterator[None]:
    """Let the gradient of a weight be NaN in the steps, counted from 0, that are bad."""
    real = TrainStep.__init__

    def init(self: TrainStep, *args: Any, **options: Any) -> None:
        real(self, *args, **options)
        weight = self.model.get_parameter(name)

        def hook(grad: Tensor) -> Tensor:
            return torch.full_like(grad, torch.nan) if bad(int(self.step)) else grad

        weight.register_hook(hook)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__init__", init)
        yield


def finite(run: Path, step: int) -> bool:
    return all(bool(torch.isfinite(x).all()) for x in weights(run, step).values())


def strict_rows(run: Path) -> list[dict[str, Any]]:
    """Rows of the metrics, read as JSON allows: without NaN and Infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


@pytest.mark.parametrize("kind", KINDS)
def test_broken_gradients_reach_no_checkpoint(kind: str, store: Path, tmp_path: Path) -> None:
    """One on a step that saves, one on the last step."""
    run = tmp_path / "run"
    own = {f"objective.{key}": value for key, value in AIMS[kind].items()}
    own["objective.target-layers"] = 1
    with poisoned(lambda at: at in (3, 5)):
        done = call(main, *words(store, run, own))
    assert done.returncode == 0, done.stderr
    assert "| skipped 2 |" in done.stdout
    assert finite(run, 4) and finite(run, 6)
    counts = [row.get("skipped") for row in strict_rows(run) if row["step"] > 0]
    assert counts == [None, None, None, 1, 1, 2]
    if kind == "sjepa":
        shutil.rmtree(run / "checkpoints" / "step-00000006")
        again = call(main, *words(store, run, own), "--resume=auto")
        assert again.returncode == 0, again.stderr
        # Of the skipped steps only the one before the checkpoint counts.
        assert strict_rows(run)[-1]["skipped"] == 1


def test_while_steps_are_skipped_no_older_checkpoint_is_dropped(
    store: Path, tmp_path: Path
) -> None:
    """Finite weights whose gradients are not would else push out those that can be trained."""
    for name, bad, kept in (("bad", lambda step: step >= 2, [2, 4, 6]), ("good", None, [4, 6])):
        run = tmp_path / name
        with poisoned(bad or (lambda _: False)):
            done = call(main, *words(store, run, {"checkpoint.keep": 2}))
        assert done.returncode == 0, done.stderr
        assert [one.step for one in list_checkpoints(run)] == kept


def test_a_run_that_only_skips_stops_with_a_diagnosis(store: Path, tmp_path: Path) -> None:
    run, name = tmp_path / "run", "view_encoder.blocks.0.proj.weight"
    options: dict[str, object] = {"runtime.max-skipped": 3, "log.every": 2, "optim.length": 40}
    options["checkpoint.every"] = 40
    with poisoned(lambda at: at >= 5, name=name):
        done = call(main, *words(store, run, options))
    assert done.returncode == 1, done.stdout
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    # Steps 6, 7 and 8 were skipped; the log reads every second step.
    found = json.loads((run / "diagnosis.json").read_text())
    assert (found["step"], found["skipped_in_a_row"], found["what"]) == (8, 3, "gradient of")
    assert (found["name"], found["layer"]) == (name, "Linear")
    opened = open_store(store)
    ids = BatchOrder(opened.ids("xsub", "train"), 0, 8, 0, 1).ids(7)
    assert found["clips"] == [{"id": i, "name": str(opened.names[i])} for i in ids.tolist()]
    assert all(word in done.stderr for word in (name, "step 8", str(opened.names[ids[0]])))
    assert [folder.name for folder in (run / "checkpoints").glob("step-*")] == ["step-00000008"]
    assert finite(run, 8), "saved as it stopped"
    last = strict_rows(run)[-1]
    assert (last["step"], last["skipped"], last["loss"], last["grad_norm"]) == (8, 3, None, None)


@pytest.mark.parametrize("whiten", [0, 1], ids=["by the step", "by what reads it before"])
def test_a_broken_clip_of_a_streamed_store_is_named(
    whiten: int, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, run = open_store(store), tmp_path / "run"
    bad = int(opened.ids("xsub", "train")[-1])
    real = RowReader._read_sample

    def broken(self: RowReader, sample: int, out: np.ndarray) -> None:
        real(self, sample, out)
        if sample == bad:
            out[:] = np.nan

    monkeypatch.setattr(RowReader, "_read_sample", broken)
    options: dict[str, object] = {"data.backend": "disk", "data.workers": 0, "eval.knn-clips": 8}
    options["data.whiten"] = whiten
    options |= {"runtime.max-skipped": 1, "optim.length": 40, "log.panel-every": 40}
    done = call(main, *words(store, run, options))
    assert done.returncode == 1 + whiten, done.stderr
    name = str(opened.names[bad])
    assert name in done.stderr and done.stderr.count("\n") == 1
    if not whiten:
        found = json.loads((run / "diagnosis.json").read_text())
        assert found["what"] == "clip" and name in found["name"]


def test_weights_that_are_broken_already_are_not_saved(store: Path, tmp_path: Path) -> None:
    run, real = tmp_path / "run", TrainStep.__call__

    def call_and_break(self: TrainStep, ids_B: Tensor) -> Any:
        result = real(self, ids_B)
        if int(self.step) == 4:
            with torch.no_grad():
                self.model.predictor.blocks[0].proj.weight[0, 0] = torch.inf
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", call_and_break)
        done = call(main, *words(store, run))
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "predictor.blocks.0.proj.weight" in done.stderr and "step 2" in done.stderr
    assert [folder.name for folder in (run / "checkpoints").glob("step-*")] == ["step-00000002"]
    assert json.loads((run / "diagnosis.json").read_text())["what"] == "weight"


def _one_of_two(rank: int, port: int, words_of_both: list[str], found: str) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {**address, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    # In the second process alone.
    with poisoned(lambda at: rank == 1 and at >= 2, "predictor.proj_out.weight"):
        done = call(main, *words_of_both)
    Path(found, str(rank)).write_text(f"{done.returncode}{done.stderr}")


@pytest.mark.slow
def test_two_processes_skip_stop_and_diagnose_together(store: Path, tmp_path: Path) -> None:
    options: dict[str, object] = {"runtime.max-skipped": 2, "optim.length": 40}
    run = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = port, words(store, run, options), str(tmp_path)
    torch.multiprocessing.spawn(_one_of_two, both, nprocs=2)
    first, second = ((tmp_path / str(rank)).read_text() for rank in (0, 1))
    assert first.startswith("1stopped: 2 steps in a row up to step 4") and second == "1"
    found = json.loads((run / "diagnosis.json").read_text())
    assert (found["process"], found["name"]) == (1, "predictor.proj_out.weight")
    ids = BatchOrder(open_store(store).ids("xsub", "train"), 0, 8, 1, 2).ids(3)
    assert [clip["id"] for clip in found["clips"]] == ids.tolist()
    assert finite(run, 4)


IDS = torch.arange(6)


def broken_step(where: str) -> TrainStep:
    step = make_step()
    model = step.model
    with torch.no_grad():
        if where == "clip":
            first = int(step.clips.offsets_N[3])
            step.clips.joints_RVC[first : first + 20] = torch.inf
        elif where == "weight":
            model.target_encoder.norm.bias[0] = torch.nan
        elif where == "output of":
            model.view_encoder.blocks[0].qkv.weight.fill_(3e38)
        elif where == "loss":
            model.center[0] = -3e38
    if where == "gradient of":
        model.predictor.proj_out.weight.register_hook(lambda grad: grad / 0)
    return step


@pytest.mark.parametrize(
    ("where", "name", "layer"),
    [
        ("clip", "tokens of the clip", ""),
        ("weight", "target_encoder.norm.bias", "LayerNorm"),
        ("output of", "view_encoder.blocks.0.proj", "Linear"),
        ("loss", "sjepa", ""),
        ("gradient of", "predictor.proj_out.weight", "Linear"),
    ],
)
@pytest.mark.parametrize("parts", [1, 3])
def test_the_replay_names_the_first_tensor(where: str, name: str, layer: str, parts: int) -> None:
    step = broken_step(where)
    step.config = replace(step.config, optim={"accumulate": parts})
    before = {key: x.clone() for key, x in step.model.state_dict().items()}
    found = replay(step, step.clips, IDS, 0)
    assert found is not None
    assert (found.what, found.name, found.layer) == (where, name, layer)
    assert found.clips == ((3,) if where == "clip" else ())
    for key, x in step.model.state_dict().items():
        torch.testing.assert_close(x, before[key], rtol=0, atol=0, equal_nan=True)
    assert all(p.grad is None for p in step.model.parameters())


def test_the_replay_of_a_healthy_step_finds_nothing() -> None:
    step = make_step()
    assert replay(step, step.clips, IDS, 0) is None
    assert first_broken(step.model, step.optimizer) is None


def test_what_a_save_would_keep_is_all_looked_at() -> None:
    for kind in ("exp_avg", "exp_avg_sq"):
        step = make_step()
        weight = step.model.predictor.mask_token
        step.optimizer.state[weight][kind][3] = torch.nan
        assert first_broken(step.model, step.optimizer) == f"{kind} of predictor.mask_token"
    step = make_step()
    step.model.center[1] = -torch.inf
    assert first_broken(step.model, step.optimizer) == "center"


def read_all(health: Health, rows: list[tuple[float, float, float]], every: int) -> list[str]:
    said: list[str] = []
    for end in range(every, len(rows) + 1, every):
        said += health.read(end, torch.tensor(rows[end - every : end]), World())[1]
    return said


def noisy(count: int, seed: int = 0) -> list[tuple[float, float, float]]:
    """Losses that fall with noise of 2 %, norms with noise of 30 %."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 2, generator=draw).tolist()
    return [
        (3 + 3 * 0.99**k + 0.05 * a, 0.5 * math.exp(0.3 * b), 0) for k, (a, b) in enumerate(noise)
    ]


@pytest.mark.parametrize("every", [1, 20])
def test_spikes_are_warned_of_once_a_window_and_counted(every: int) -> None:
    health, rows = Health(10), noisy(600)
    assert read_all(health, rows, every) == [] and health.spikes == 0
    for step in (300, 310, 500):
        rows[step] = (9.0, *rows[step][1:])
    rows[550] = (rows[550][0], 40.0, 0)
    rows[10] = (90.0, 90.0, 0)  # too early to tell
    health = Health(10)
    said = read_all(health, rows, every)
    assert health.spikes == 4
    assert len(said) == 2 and "step 301" in said[0] and "step 501" in said[1]
    assert "loss 9" in said[0] and "gradient norm" not in said[0]


@pytest.mark.parametrize("every", [1, 4])
def test_so_many_in_a_row_stop_a_run_and_fewer_do_not(every: int) -> None:
    good, bad = (1.0, 1.0, 0.0), (math.nan, 1.0, 1.0)
    health = Health(3, skipped=5)
    assert read_all(health, [good, bad, bad, good, bad, bad, good, good], every) == []
    assert (health.skipped, health.failed, health.stops) == (9, None, False)
    read_all(health, [bad, bad, good, good], every)
    read_all(health, [good, bad, bad, bad], every)
    assert health.failed == 3 and health.stops


def test_a_collapse_is_warned_of_when_it_begins() -> None:
    health, said = Health(10), []
    for step, rank in enumerate((20.0, 26.0, math.nan, 14.0, 12.0, 11.0, 25.0, 1.5, 1.2), start=1):
        panel = {"effective_rank": rank, "collapsed": float(rank < 2)}
        said += [(step, line) for line in health.judge(step, panel)]
    assert [step for step, _ in said] == [5, 8]
    assert "fallen from 26.0 at step 2 to 12.0 at step 5" in said[0][1]
    assert "have collapsed, effective rank 1.5 at step 8" in said[1][1]
    assert all("sjepa_fast.doctor" in line for _, line in said)


def test_a_run_warns_of_a_collapse_once_also_when_it_is_resumed(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = {"effective_rank": 1.5, "channel_std": 1.0, "collapsed": 1.0}
    monkeypatch.setattr("sjepa_fast.training.recorder.collapse_panel", lambda *_: dict(panel))
    often, run = {"log.panel-every": 1}, tmp_path / "run"
    done = call(main, *words(store, run, {**often, "optim.length": 2}))
    assert done.stdout.count("warning: the features have collapsed") == 1, done.stderr
    assert Health(10).judge(3, panel)
    assert not Health.of(read_config(run / "config.yaml"), 2).judge(3, panel)


def test_the_logged_loss_is_of_the_steps_that_count() -> None:
    health = Health(10)
    rows = torch.tensor([(2.0, 1.0, 0.0), (math.nan, 1.0, 1.0), (4.0, 3.0, 0.0)])
    assert health.read(3, rows, World())[0] == {"loss": 3.0, "grad_norm": 3.0, "skipped": 1}
    values = health.read(4, torch.tensor([(math.nan, math.nan, 1.0)]), World())[0]
    assert math.isnan(values["loss"]) and values["skipped"] == 2
