"""`continue_from`: which weights and settings a run begins with, and what it writes of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import sjepa_fast
from sjepa_fast import ablate, train
from sjepa_fast.build import build_model
from sjepa_fast.config.continued import FIXED, INPUT
from sjepa_fast.config.files import leaves, parse_train, read_config, to_dict
from sjepa_fast.config.schema import replace
from sjepa_fast.data.clips import load_resident
from sjepa_fast.data.facts import facts_of
from sjepa_fast.data.store import open_store
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.subject import clips_seen_in_training, data_record
from sjepa_fast.joint_map import map_joints
from sjepa_fast.runtime.dist import World
from sjepa_fast.skeletons import KINECT20, NTU25
from sjepa_fast.training.continuing import open_start, origin_of, start_from
from tests.test_train_fitted import write
from tests.tiny import AIMS, CPU, call, flags, metrics, trained, weights

SHORT = {
    "optim.length": 2,
    "optim.warmup": 1,
    "log.every": 1,
    "runtime.device": "cpu",
    "runtime.dtype": "bfloat16",
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of another skeleton than the models'."""
    return write(tmp_path_factory.mktemp("stores") / "own")


@pytest.fixture(scope="module")
def model(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whitened S-JEPA run on NTU's joints, of 16 frames."""
    return trained(store, tmp_path_factory.mktemp("runs") / "model", "--optim.length=2")


@pytest.fixture(scope="module")
def continued(own: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "continued"
    words = ["--continue-from", model, "--data.root", own, "--run", run, *flags(SHORT)]
    done = call(train.main, *words)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == (
        "continues model (sjepa, trained on synthetic): the encoder's weights; all else starts anew"
    )
    assert "data.frames 16" in lines[1] and "data.align_yaw True" in lines[1]
    assert lines[2] == "  whitening: the one in the weights of model, not fitted anew"
    assert "  optim.lr 0.0001: 0.1 of 0.001, for the weights are trained" in lines
    assert "sjepa-small for own (32 training clips" in done.stdout
    assert "data.frames 16: given" not in done.stdout, "said once"
    assert f"% with the weights of {model}, " in done.stdout
    return run


def test_settings_are_the_models_where_its_weights_need_it(model: Path, continued: Path) -> None:
    theirs, ours = (leaves(to_dict(read_config(run / "config.yaml"))) for run in (model, continued))
    assert {key: ours[key] for key in (*FIXED, *INPUT)} == {
        key: theirs[key] for key in (*FIXED, *INPUT)
    }
    assert (ours["optim.lr"], ours["optim.lr_end"]) == (1e-4, 1e-5)
    # The rule's, for this store.
    assert (ours["data.split"], ours["data.bodies"], ours["optim.batch_size"]) == ("random", 1, 32)
    assert ours["continue_from"] == str(model)


@pytest.mark.parametrize("kind", AIMS)
def test_both_encoders_begin_with_the_models_and_the_rest_anew(
    kind: str, model: Path, own: Path, tmp_path: Path
) -> None:
    config = read_config(model / "config.yaml")
    config = replace(config, objective={**AIMS[kind], "target_layers": 1}, data={"bodies": 1})
    config = dataclasses.replace(config, continue_from=str(model), run=tmp_path / "r")
    store = open_store(own)
    clips, ids = load_resident(store, config.data, CPU), torch.arange(8)
    fresh = build_model(config, clips, ids, CPU).state_dict()
    begins_with = open_start(config, store.layout)
    assert begins_with is not None
    begun = build_model(config, clips, ids, CPU)
    (tmp_path / "r").mkdir()
    start_from(begins_with, begun, config, World())
    theirs, rows = weights(model), map_joints(NTU25, KINECT20)
    seen = set()
    for name, tensor in begun.state_dict().items():
        network, _, own_name = name.partition(".")
        if not network.endswith("_encoder"):
            assert torch.equal(tensor, fresh[name]), name
            continue
        wanted = theirs[f"target_encoder.{own_name}"]
        if own_name == "embed.spatial":
            wanted = torch.stack([wanted[list(joints)].mean(dim=0) for joints in rows])
        assert torch.equal(tensor, wanted), name
        seen.add(own_name)
    assert {"embed.whiten_matrix", "embed.spatial", "blocks.0.qkv.weight"} <= seen


def test_the_run_begins_where_the_model_ended_and_says_so(
    model: Path, continued: Path, own: Path, tmp_path: Path
) -> None:
    run = tmp_path / "still"
    rates = {"optim.lr": 0, "optim.lr-end": 0, "optim.weight-decay": 0}
    words = ["--continue-from", model, "--data.root", own, "--run", run, *flags(SHORT | rates)]
    assert call(train.main, *words).returncode == 0
    theirs = weights(model)
    for name, tensor in weights(run).items():
        if "_encoder.blocks" in name:
            own_name = f"target_encoder.{name.partition('.')[2]}"
            torch.testing.assert_close(tensor, theirs[own_name], rtol=1e-6, atol=1e-8, msg=name)
    score = json.loads((run / "results" / "knn-before-after.json").read_text())
    assert score["before"] == score["after"] == metrics(run)[0]["knn"]
    record = json.loads((continued / "continued_from.json").read_text())
    assert (record["model"], record["encoder"], record["step"]) == ("model", "target", 2)
    checkpoint = json.loads((model / "checkpoints/step-00000002/checkpoint.json").read_text())
    assert record["sha256"] == checkpoint["files"]["model.safetensors"]["sha256"]
    assert data_record(continued)["continued_from"] == record
    earlier = set((continued / "earlier_train_ids.txt").read_text().splitlines())
    assert earlier == set((model / "train_ids.txt").read_text().splitlines())


def test_clips_that_the_model_has_seen_count_as_seen(store: Path, continued: Path) -> None:
    whole = open_store(store)
    ids = whole.ids("xview", "train")[:5]
    assert clips_seen_in_training(continued, whole, ids) == 5


def test_a_saved_model_has_no_path_and_names_its_origin(continued: Path, tmp_path: Path) -> None:
    sjepa_fast.load(continued, device="cpu").save_pretrained(tmp_path / "saved")
    text = (tmp_path / "saved" / "config.json").read_text()
    assert str(continued.parent) not in text and json.loads(text)["config"]["continue_from"] == ""
    assert json.loads(text)["trained_on"]["continued_from"]["model"] == "model"
    assert "from the weights of model" in " ".join(
        (tmp_path / "saved" / "README.md").read_text().split()
    )
    again = sjepa_fast.load(tmp_path / "saved", device="cpu")
    assert again.content.trained_on["continued_from"]["trained_on"]["store"] == "synthetic"


def test_resuming_needs_no_model_and_changes_nothing(
    own: Path, model: Path, tmp_path: Path
) -> None:
    gone, run = tmp_path / "gone", tmp_path / "run"
    gone.symlink_to(model)
    words = ["--continue-from", gone, "--data.root", own, "--run", run, *flags(SHORT)]
    assert call(train.main, *words).returncode == 0
    before = weights(run)
    gone.unlink()
    for again in (words, [*words, "--resume", "auto"], ["--run", run, "--resume", "auto"]):
        done = call(train.main, *again)
        if "--resume" not in again:
            assert done.returncode == 2 and "continue_from: " in done.stderr
            continue
        assert done.returncode == 0, done.stderr
        assert "continues" not in done.stdout and "resumed at step 2" in done.stdout
    assert all(torch.equal(weights(run)[name], tensor) for name, tensor in before.items())
    other = call(train.main, *words, "--resume", "auto", "--continue-from", "tiny")
    assert other.returncode == 2
    assert "continue_from: tiny, but the run began with" in other.stderr


def test_flags_and_yaml_win_where_the_weights_allow_it(
    own: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(f"continue_from: {model}\ndata: {{root: {own}, center: false}}\n")
    words = ["--config", str(file), "--optim.lr", "3e-4", "--optim.batch-size", "16"]
    config = parse_train(words, facts_of, origin_of)
    assert (config.optim.lr, config.optim.lr_end, config.optim.batch_size) == (3e-4, 1e-5, 16)
    assert not config.data.center and config.data.align_yaw
    said = capsys.readouterr().out
    assert "data.center False: given; model has True" in said
    assert "optim.lr 0.0003: given" in said


def test_a_preset_may_be_named(own: Path, model: Path) -> None:
    words = ["--continue-from", str(model), "--data.root", str(own)]
    other = parse_train(["mamp-small", *words], facts_of, origin_of)
    assert (other.objective.kind, other.model.width, other.data.frames) == ("mamp", 32, 16)
    published = parse_train(["sjepa-ntu60-xsub", *words], facts_of, origin_of)
    assert (published.optim.length, published.optim.unit) == (1200, "epochs")
    assert (published.optim.lr, published.model.width, published.data.bodies) == (1e-4, 32, 2)


def test_a_model_of_the_package_and_a_saved_one(own: Path) -> None:
    words = ["--continue-from", "tiny", "--data.root", str(own)]
    config = parse_train(words, facts_of, origin_of)
    assert (config.objective.kind, config.data.whiten, config.model.layer_scale) == ("mamp", 0, 0)
    assert (config.optim.lr, config.optim.lr_end) == (1e-4, 1e-5)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--data.frames", "32"], "data.frames: 32, but model was trained with 16; leave it out"),
        (["--model.segment-length", "8"], "model.segment_length: 8, but model was trained with 4"),
        (["--data.whiten", "0.5"], "data.whiten: 0.5, but model was trained with 1.0"),
        (["--continue-from", "absent"], "continue_from: absent does not exist; name a run folder"),
    ],
)
def test_what_does_not_fit_is_refused(
    words: list[str], says: str, own: Path, model: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    start = ["--continue-from", model, "--data.root", own, "--run", run, *flags(SHORT)]
    done = call(train.main, *start, *words)
    assert done.returncode == 2 and done.stderr.startswith(says), done.stderr
    assert not run.exists()


def test_without_a_store_the_preset_says_what_is_missing(model: Path) -> None:
    done = call(train.main, "--continue-from", model)
    assert done.returncode == 2 and "add --data.root STORE" in done.stderr


def test_a_configuration_that_does_not_fit_is_refused_before_the_run(
    own: Path, model: Path, tmp_path: Path
) -> None:
    """As one written by hand, or made in Python."""
    config = read_config(model / "config.yaml")
    config = replace(config, data={"root": own, "frames": 32, "bodies": 1, "split": "random"})
    config = dataclasses.replace(config, continue_from=str(model), run=tmp_path / "run")
    with pytest.raises(InputError, match="32, but model was trained with 16"):
        train.train(config)
    assert not (tmp_path / "run").exists()


def test_an_ablation_may_continue_too(own: Path, model: Path, tmp_path: Path) -> None:
    words = ["--continue-from", model, "--data.root", own, "--run", tmp_path, *flags(SHORT)]
    done = call(ablate.main, "--axis", "optim.lr", "--values", "1e-4", "1e-3", *words)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*/continued_from.json"))) == 2
