"""`evaluate` on a run: figures that state their conditions, and one-line errors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sjepa_fast import evaluate
from sjepa_fast.build import build_model
from sjepa_fast.config.files import parse_train, to_yaml
from sjepa_fast.evaluation.features import clip_features, pool_tokens
from sjepa_fast.evaluation.protocols.knn import KnnRequest
from sjepa_fast.evaluation.subject import make_encoder, open_subject
from tests.tiny import CPU, Done, call, flags, trained, weights


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "store").symlink_to(store)
    sizes = {"model.width": 64, "model.heads": 4, "optim.length": 3, "optim.batch-size": 16}
    return trained(
        *(folder / "store", folder / "run"),
        *flags({**sizes, "data.split": "xsub_xview", "eval.online-pool": "full"}),
    )


def call_evaluate(*arguments: str) -> Done:
    return call(evaluate.main, *arguments)


def result(run: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (run / "results" / f"{name}-synthetic-xsub.json").read_text()
    )
    return found


def test_knn_states_its_conditions(run: Path) -> None:
    store = str(run.parent / "store")
    done = call_evaluate("knn", str(run), "--data.root", store, "--data.split", "xsub")
    assert done.returncode == 0, done.stderr
    found = result(run, "knn-target-full")
    assert found["split"] == "xsub" and found["train_clips"] == found["test_clips"] == 84
    assert found["weights"]["step"] == 3 and len(found["weights"]["sha256"]) == 64
    assert len(found["store_fingerprint"]) == 64
    right = sum(found["confusion"][i][i] for i in range(14))
    assert found["top1_k1"] == pytest.approx(100 * right / 84)
    assert f"{found['top1_k1']:.1f}" in done.stdout
    assert {"top1_k1", "top1_k2", "top1_k5", "top1_k10"} <= set(found)
    assert (run / "results" / "knn-target-full-synthetic-xsub.png").stat().st_size > 0


def test_encoders_differ_and_raw_has_no_weights(run: Path) -> None:
    scores = {}
    for encoder in ("target", "view", "random", "raw"):
        done = call_evaluate(
            "knn", str(run), "--encoder", encoder, "--data.split", "xsub", "--k", "1"
        )
        assert done.returncode == 0, done.stderr
        name = "knn-raw" if encoder == "raw" else f"knn-{encoder}-full"
        scores[encoder] = result(run, name)
    assert scores["raw"]["weights"] is None and scores["random"]["weights"] is None
    assert scores["raw"]["top1_k1"] > 20, "coordinates carry the class"
    assert scores["view"]["weights"] == scores["target"]["weights"]


def test_each_encoder_is_the_one_it_names(run: Path) -> None:
    """After three steps target, view and random differ, and each equals its stored weights."""
    stored = weights(run)
    found = {}
    for encoder in ("target", "view", "random"):
        subject = open_subject(KnnRequest(run, encoder=encoder))
        clips, config, ids = subject.clips, subject.config, torch.arange(6)
        network = make_encoder(subject, encoder, ids)
        model = build_model(config, clips, ids, CPU).eval()
        if encoder != "random":
            model.load_state_dict(stored)
        expected_of = model.view_encoder if encoder == "view" else model.target_encoder
        found[encoder], expected = (
            clip_features(net, clips, ids, config, subject.dtype, "mean")
            for net in (network, expected_of)
        )
        torch.testing.assert_close(found[encoder], expected)
    for one, other in (("target", "view"), ("target", "random"), ("view", "random")):
        assert (found[one] - found[other]).abs().max() > 1e-3, (one, other)


def test_clips_seen_in_training_are_counted(run: Path, tmp_path: Path) -> None:
    done = call_evaluate("knn", str(run), "--data.split", "xsub")
    assert done.returncode == 0 and "pre-training" not in done.stdout, done.stdout
    trained_on = result(run, "knn-target-full")["trained_on"]
    assert trained_on["split"] == "xsub_xview" and len(trained_on["fingerprint"]) == 64
    for name in ("config.yaml", "data.json", "checkpoints"):
        (tmp_path / name).symlink_to(run / name)
    (tmp_path / "results").mkdir()
    tests = open_subject(KnnRequest(run)).store
    names = [str(tests.names[i]) for i in tests.ids("xsub", "test")[:3]]
    (tmp_path / "train_ids.txt").write_text("\n".join([*names, "other"]))
    done = call_evaluate("knn", str(tmp_path), "--data.split", "xsub")
    assert "3 of the test clips were in the pre-training set" in done.stdout, done.stderr
    assert result(tmp_path, "knn-target-full")["test_clips_seen_in_training"] == 3


def test_linear_by_both_recipes(run: Path, tmp_path: Path) -> None:
    done = call_evaluate("linear", str(run), "--data.split", "xsub", "--pool", "joint")
    assert done.returncode == 0, done.stderr
    found = result(run, "linear-target-joint")
    assert found["recipe"]["name"] == "small" and found["recipe"]["C"] == 0.01
    config = parse_train(["--config", str(run / "config.yaml"), "--eval.recipe", "paper"])
    (tmp_path / "results").mkdir()
    # As written before `eval.linear: sgd | logistic` became `eval.recipe: paper | small`.
    old = to_yaml(config).replace("recipe: paper", "linear: sgd")
    assert "recipe" not in old
    (tmp_path / "config.yaml").write_text(old)
    for name in ("checkpoints", "data.json", "train_ids.txt"):
        (tmp_path / name).symlink_to(run / name)
    done = call_evaluate("linear", str(tmp_path), "--data.split", "xsub")
    assert done.returncode == 0, done.stderr
    sgd = result(tmp_path, "linear-target-mean")
    assert sgd["recipe"]["kind"] == "sgd" and sgd["top1_best_epoch"] >= sgd["top1"] > 7


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["knn", "nowhere"], ["run", "nowhere"]),
        (["knn", "RUN", "--data.root", "nowhere"], ["data.root", "nowhere"]),
        (["knn", "RUN", "--data.split", "xset"], ["data.split", "xset", "xsub"]),
        (["knnn", "RUN"], ["knnn", "knn"]),
        (["knn", "RUN", "--k", "0"], ["k", "0", "at least 1"]),
        (["knn", "RUN", "--poool", "mean"], ["--poool", "--pool"]),
    ],
)
def test_bad_input_exits_2_with_one_line(run: Path, arguments: list[str], words: list[str]) -> None:
    done = call_evaluate(*(str(run) if a == "RUN" else a for a in arguments))
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


def test_pooling_by_hand() -> None:
    x = torch.randn(2, 3, 8, 5)
    torch.testing.assert_close(pool_tokens(x, "mean", 4), x.mean(dim=(1, 2)))
    people = x.mean(dim=1)
    torch.testing.assert_close(pool_tokens(x, "full", 4), people.reshape(2, 40))
    joint = torch.stack([people[:, [j, j + 4]].mean(dim=1) for j in range(4)], dim=1)
    torch.testing.assert_close(pool_tokens(x, "joint", 4), joint.reshape(2, 20))


@pytest.mark.parametrize("segments", [4, 8, 6, 30])
def test_pyramid_by_hand(segments: int) -> None:
    joints, width = 3, 5
    x = np.random.default_rng(0).normal(size=(2, 2, segments, joints, width))
    people, parts = x.mean(axis=1), []
    for count in (1, 2, 4):
        for part in range(count):
            first, last = part * segments / count, (part + 1) * segments / count
            # Every segment that reaches into the part.
            inside = [s for s in range(segments) if s + 1 > first and s < last]
            parts.append(people[:, inside].mean(axis=1).reshape(2, -1))
    ours = pool_tokens(torch.from_numpy(x).flatten(2, 3), "pyramid", joints)
    assert ours.shape == (2, 7 * joints * width)
    np.testing.assert_allclose(ours.numpy(), np.concatenate(parts, axis=1))
