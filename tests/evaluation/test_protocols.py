"""Every protocol through the public command: what is written, and that it is what it says."""

import json
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from sjepa_fast import evaluate
from sjepa_fast.data.store import open_store
from sjepa_fast.data.synthetic import write_synthetic_store
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.features import in_halves
from sjepa_fast.evaluation.outcome import Outcome
from sjepa_fast.evaluation.protocols import PROTOCOLS, finetune, of_one_run
from sjepa_fast.evaluation.request import Request
from sjepa_fast.evaluation.subject import Subject
from sjepa_fast.evaluation.subset import draw_subset
from sjepa_fast.skeletons import NTU25
from sjepa_kernels import Augmentation, SkeletonTables, augment_clips
from sjepa_kernels.tubelets import to_stream
from tests.tiny import as_kinect, flags, start_python, trained
from tests.tiny import weights as saved_weights

SHORT = ["--recipe.length", "4", "--recipe.warmup", "1", "--recipe.score-every", "2"]
SHORT += ["--recipe.hidden", "16", "--recipe.batch-size", "16"]


def make_run(store: Path, run: Path, *more: str) -> Path:
    sizes = {"data.split": "xsub", "optim.length": 2, "optim.batch-size": 16}
    return trained(store, run, *flags(sizes), *more)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("protocols")
    write_synthetic_store(folder / "store", subjects=2, repetitions=1)
    return make_run(folder / "store", folder / "run")


def result(run: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "results" / f"{name}.json").read_text())
    return found


def scores(run: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(run / "results" / f"{name}.scores.npz", allow_pickle=False) as saved:
        return dict(saved)


def test_finetune_states_and_keeps_what_it_did(run: Path) -> None:
    name = "finetune-target-synthetic-xsub"
    assert evaluate.run(["finetune", str(run), "--seeds", "0", "1", "--save", *SHORT]) == 0
    found, saved = result(run, name), scores(run, name)
    store = open_store(run.parent / "store")
    test = store.ids("xsub", "test")
    assert saved["names"].tolist() == store.names[test].tolist()
    assert np.array_equal(saved["labels"], store.labels[test])
    assert saved["scores"].shape == (2, len(test), 14)
    right = 100 * (saved["scores"].argmax(-1) == saved["labels"]).mean(axis=1)
    np.testing.assert_allclose(found["top1_per_seed"], right)
    np.testing.assert_allclose(found["top1"], right.mean())
    np.testing.assert_allclose(found["top1_std"], right.std(ddof=1))
    assert not np.allclose(*saved["scores"]), "seeds differ"
    for last, best, step in zip(
        found["top1_per_seed"],
        found["top1_best_epoch_per_seed"],
        found["best_step_per_seed"],
        strict=True,
    ):
        assert best >= last and step in (2, 4)
    matrix = np.zeros((14, 14), dtype=int)
    for row in saved["scores"].argmax(-1):
        np.add.at(matrix, (saved["labels"], row), 1)
    assert found["confusion"] == matrix.tolist()
    expected = 100 * matrix[3, 3] / matrix[3].sum()
    assert found["per_class"][store.class_names[3]] == pytest.approx(expected)
    assert found["recipe"]["name"] == "strong" and found["recipe"]["length"] == 4
    assert found["seeds"] == [0, 1] and found["device"] == "cpu" and found["split"] == "xsub"
    assert found["store_fingerprint"] == store.fingerprint
    assert len(found["weights"]["sha256"]) == 64 and found["joint_map"] is None
    assert (run / "results" / f"{name}.png").stat().st_size > 0
    folder = run / "finetune" / f"{name}-s1"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4] and rows[-1]["top1"] == pytest.approx(right[1])
    weights = safetensors.torch.load_file(folder / "weights" / "model.safetensors")
    assert weights["head.fc1.weight"].shape == (16, 25 * 32)


def test_finetune_repeats_and_trains_the_encoder(run: Path) -> None:
    name = "finetune-view-synthetic-xsub"
    kept = []
    for _ in range(2):
        assert evaluate.run(["finetune", str(run), "--encoder", "view", "--save", *SHORT]) == 0
        file = run / "finetune" / f"{name}-s0" / "weights" / "model.safetensors"
        kept.append(safetensors.torch.load_file(file))
    assert all(torch.equal(kept[0][key], kept[1][key]) for key in kept[0])
    before = saved_weights(run)
    for part in ("embed.proj.weight", "blocks.0.qkv.weight", "norm.weight"):
        start, end = before[f"view_encoder.{part}"], kept[0][f"encoder.{part}"]
        assert 0 < (start - end).abs().max() < 0.1, part
    same = kept[0]["encoder.embed.whiten_matrix"]
    assert torch.equal(same, before["view_encoder.embed.whiten_matrix"]), "whitening stays"


def test_from_scratch_is_fresh_for_every_seed_and_learns_without_layer_decay(run: Path) -> None:
    arguments = ["finetune", str(run), "--encoder", "random", "--seeds", "0", "1", *SHORT]
    assert evaluate.run([*arguments, "--recipe.lr", "0", "--recipe.lr-end", "0", "--save"]) == 0
    found = result(run, "finetune-random-synthetic-xsub")
    assert found["weights"] is None and found["recipe"]["layer_decay"] == 1.0
    first, second = (
        safetensors.torch.load_file(
            run / f"finetune/finetune-random-synthetic-xsub-s{seed}/weights/model.safetensors"
        )["encoder.blocks.0.qkv.weight"]
        for seed in (0, 1)
    )
    assert not torch.equal(first, second)


def test_semi_writes_the_subset_it_used(run: Path) -> None:
    arguments = ["semi", str(run), "--ratio", "0.4", "--balanced", "--seeds", "0", "2", *SHORT]
    assert evaluate.run(arguments) == 0
    name = "semi0.4-balanced-target-synthetic-xsub"
    found, store = result(run, name), open_store(run.parent / "store")
    assert found["recipe"]["labelled_clips"] == int(42 * 0.4) and found["recipe"]["balanced"]
    lists = []
    for seed in (0, 2):
        lists.append((run / "results" / f"{name}-s{seed}.ids.txt").read_text().split())
        drawn = draw_subset(store, "xsub", 0.4, seed, balanced=True)
        assert lists[-1] == [str(store.names[i]) for i in drawn]
    assert lists[0] != lists[1]


def test_transfer_to_another_skeleton_with_other_clips(run: Path, tmp_path: Path) -> None:
    other = as_kinect(open_store(run.parent / "store"), tmp_path / "kinect")
    arguments = ["transfer", str(run), "--data.root", str(other.root), *SHORT]
    assert evaluate.run([*arguments, "--save"]) == 0
    found = result(run, "transfer-target-kinect-xsub")
    assert found["joint_map"]["hip_center"] == ["spine_base"] and found["test_clips"] == 28
    assert found["trained_on"]["store"] == "synthetic" and found["store"] == "kinect"
    file = run / "finetune/transfer-target-kinect-xsub-s0/weights/model.safetensors"
    assert safetensors.torch.load_file(file)["encoder.embed.spatial"].shape == (20, 32)
    with pytest.raises(InputError, match=r"data\.root"):
        evaluate.run(["transfer", str(run)])
    assert evaluate.run(["knn", str(run), "--data.root", str(other.root)]) == 0


def test_linear_on_new_views_each_epoch(run: Path) -> None:
    base = ["linear", str(run), "--recipe.name", "paper", "--recipe.epochs", "3"]
    cached = [*base, "--recipe.lr", "0.1", "0.5", "--seeds", "0", "1", "2"]
    assert evaluate.run(cached) == 0
    found = result(run, "linear-target-mean-synthetic-xsub")
    assert len(found["top1_per_seed"]) == 3 and found["recipe"]["views"] is None
    assert found["by_lr"]["0.1"]["top1"] == found["top1_per_seed"]
    assert set(found["by_lr"]) == {"0.1", "0.5"} and max(found["best_epoch_per_seed"]) <= 3
    assert evaluate.run([*base, "--augment"]) == 0
    plain = scores(run, "linear-target-mean-synthetic-xsub")["scores"][0]
    viewed = scores(run, "linear-target-mean-augment-synthetic-xsub")["scores"][0]
    assert not np.allclose(plain, viewed)
    stated = result(run, "linear-target-mean-augment-synthetic-xsub")["recipe"]
    assert stated["views"]["rotation"] == 0.3 and stated["views"]["form"] == "axes"


def test_retrieval_and_knn_agree_on_the_first(run: Path) -> None:
    for protocol in ("retrieval", "knn"):
        assert evaluate.run([protocol, str(run), "--runtime.dtype", "float32"]) == 0
    found = result(run, "retrieval-target-mean-synthetic-xsub")
    nearest = result(run, "knn-target-mean-synthetic-xsub")
    assert found["rank1"] == nearest["top1_k1"] > 100 / 14 and found["map"] > 100 / 14
    assert found["queries_without_a_match"] == 0 and found["dtype"] == "float32"


def test_ensemble_of_streams_is_the_mean_of_probabilities(run: Path, tmp_path: Path) -> None:
    bones = make_run(run.parent / "store", tmp_path / "bones", "--data.stream", "bone")
    for folder in (run, bones):
        assert evaluate.run(["linear", str(folder), "--pool", "joint"]) == 0
    of = "linear-target-joint"
    assert evaluate.run(["ensemble", str(run), str(bones), "--of", of]) == 0
    found = result(run, f"ensemble-{of}-synthetic-xsub")
    assert [m["stream"] for m in found["members"]] == ["joint", "bone"]
    parts = [scores(folder, f"{of}-synthetic-xsub") for folder in (run, bones)]
    exp = [np.exp(p["scores"][0] - p["scores"][0].max(1, keepdims=True)) for p in parts]
    mean = sum(e / e.sum(1, keepdims=True) for e in exp)
    expected = 100 * (mean.argmax(1) == parts[0]["labels"]).mean()
    assert found["top1"] == pytest.approx(expected)
    assert not np.allclose(parts[0]["scores"], parts[1]["scores"])
    with pytest.raises(InputError, match="of: knn fits none"):
        evaluate.run(["ensemble", str(run), str(bones), "--of", "knn"])
    with pytest.raises(InputError, match="two runs"):
        evaluate.run(["ensemble", str(run)])
    shutil.copytree(bones / "results", tmp_path / "odd" / "results")
    file = tmp_path / "odd" / "results" / f"{of}-synthetic-xsub.json"
    file.write_text(file.read_text().replace('"split": "xsub"', '"split": "xview"'))
    with pytest.raises(InputError, match="another split"):
        evaluate.run(["ensemble", str(run), str(tmp_path / "odd"), "--of", of])


@pytest.mark.parametrize("stream", ["joint", "bone", "motion", "bone_motion"])
def test_streams_are_those_of_the_fused_op(run: Path, stream: str) -> None:
    """The evaluation crop of the whole clip equals the op's unrotated crop of the whole clip."""
    store = open_store(run.parent / "store")
    clip = torch.from_numpy(store.clip(5).copy())
    bodies, frames = clip.shape[:2]
    tables = SkeletonTables.of(NTU25.flip_permutation(), NTU25.parents, 0, 20, "cpu")
    one = torch.tensor([0])
    view, _ = augment_clips(
        clip.flatten(0, 1),
        *(one, torch.tensor([frames]), torch.tensor([bodies]), one),
        *(torch.tensor(0), torch.tensor(0), tables),
        Augmentation(
            frames=frames, bodies=bodies, segment_length=1, crop_min=1, rotation=0, stream=stream
        ),
    )
    ours = to_stream(clip[None], tables.parents_V, stream)
    torch.testing.assert_close(view.view(ours.shape), ours, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("protocol", ["finetune", "semi", "transfer"])
def test_a_subclass_of_a_request_reaches_its_own_protocol(
    run: Path, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ReachedError(Exception):
        pass

    def reached(_subject: Subject, _request: Request, name: str, _labelled: object) -> None:
        raise ReachedError(name)

    monkeypatch.setattr(finetune, "over_labels", reached)
    for rows in (PROTOCOLS, dict(reversed(PROTOCOLS.items()))):
        monkeypatch.setattr(evaluate, "PROTOCOLS", rows)
        with pytest.raises(ReachedError, match=rf"^{protocol}(0\.1)?-target$"):
            evaluate.run([protocol, str(run), "--data.root", str(run.parent / "store")])


@dataclass(frozen=True)
class GuessRequest(Request):
    """Guess one class for every clip."""

    guess: int = 0
    """Class."""


def run_guess(subject: Subject, request: GuessRequest) -> Outcome:
    guesses = torch.full((1, len(subject.test_ids)), request.guess)
    return Outcome("guess", {"top1": 0.0}, {"guess": request.guess}, guesses)


def test_a_row_of_the_table_is_a_protocol(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PROTOCOLS, "guess", of_one_run(GuessRequest, run_guess))
    assert evaluate.run([]) == 0
    said = capsys.readouterr().out
    assert "\n  guess       Guess one class" in said
    assert evaluate.run(["guess", str(run), "--guess", "3"]) == 0
    found = result(run, "guess-synthetic-xsub")
    assert found["protocol"] == "guess" and found["recipe"] == {"guess": 3}
    assert all(sum(row) == row[3] for row in found["confusion"])
    with pytest.raises(InputError, match="nearest: guess"):
        evaluate.run(["gues", str(run)])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["finetune", "RUN", "--encoder", "raw"], "encoder: raw"),
        (["finetune", "RUN", "--seeds", "-1"], "seeds"),
        (["finetune", "RUN", "--recipe.warmup", "9999"], r"recipe\.warmup"),
        (["finetune", "RUN", "--recipe.lengths", "9"], r"--recipe\.length"),
        (["semi", "RUN", "--ratio", "0.001"], "ratio"),
        (["linear", "RUN", "--augment"], "augment"),
        (["linear", "RUN", "--seeds", "0", "1"], "seeds"),
        (["knn", "RUN", "--data.eval-crop", "2"], r"data\.eval_crop"),
        (["retrieve", "RUN"], "retrieval"),
    ],
)
def test_bad_requests_name_the_argument(run: Path, arguments: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        evaluate.run([str(run) if a == "RUN" else a for a in arguments])


def test_ctrl_c_leaves_no_result(run: Path, tmp_path: Path) -> None:
    own = tmp_path / "run"
    shutil.copytree(run, own, ignore=shutil.ignore_patterns("results", "finetune"))
    started = start_python(
        *("-m", "sjepa_fast.evaluate", "finetune", own),
        *("--recipe.length", "100000", "--recipe.score-every", "2"),
    )
    metrics = own / "finetune" / "finetune-target-synthetic-xsub-s0" / "metrics.jsonl"
    limit = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < limit:
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 130
    assert said.strip() == "interrupted; no result is written, and the same command begins anew"
    assert not (own / "results").exists()
    assert all(json.loads(line)["step"] for line in metrics.read_text().splitlines())
    assert [p.name for p in metrics.parent.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("kind", ["mamp", "skeleton2vec"])
def test_other_objectives_are_evaluated_by_the_encoder_they_have(
    run: Path, tmp_path: Path, kind: str
) -> None:
    flags = ["--objective.kind", kind, "--objective.target-layers", "1"]
    other = make_run(run.parent / "store", tmp_path / kind, *flags)
    for encoder in ("target", "view"):
        assert evaluate.run(["linear", str(other), "--encoder", encoder]) == 0
    target, view = (
        scores(other, f"linear-{encoder}-mean-synthetic-xsub")["scores"]
        for encoder in ("target", "view")
    )
    assert np.array_equal(target, view) == (kind == "mamp"), "only Skeleton2vec has two encoders"


def test_a_chunk_that_does_not_fit_is_encoded_in_halves() -> None:
    """A run at the edge of a GPU's memory ended in the score after its last step."""
    taken = []

    def encode(ids: Tensor) -> Tensor:
        if len(ids) > 3:
            raise torch.OutOfMemoryError("no room")
        taken.append(len(ids))
        return ids[:, None] * 2.0

    ids = torch.arange(11)
    assert torch.equal(in_halves(encode)(ids), ids[:, None] * 2.0)
    assert max(taken) == 3

    def never(_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError):
        in_halves(never)(ids)
