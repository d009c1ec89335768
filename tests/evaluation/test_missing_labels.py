"""Clips without a label take part in pre-training and are embedded; no score is made of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sjepa_fast import ablate, doctor, embed, evaluate, export
from sjepa_fast.data.clip_table import NO_LABEL
from sjepa_fast.data.store import Store, open_store
from sjepa_fast.data.store_writer import StoreWriter
from sjepa_fast.data.synthetic import write_synthetic_store
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.checkpoints import validation_parts
from sjepa_fast.evaluation.features import nearest_neighbour
from sjepa_fast.evaluation.subset import draw_subset
from tests.tiny import call, metrics, trained, words_of_run

SHORT = ("--data.split=xsub", "--optim.length=2", "--log.knn-every=1")


def copied(store: Store, out: Path, labels: list[int | None], ids: np.ndarray) -> Store:
    """Copy some clips with other labels; classes are those of the store if any clip has one."""
    names = store.class_names if any(label is not None for label in labels) else ()
    with StoreWriter(out, out.name, store.layout, names) as writer:
        for i in ids:
            writer.add(str(store.names[i]), store.clip(i), labels[i], {})
        return writer.finish({"xsub": np.array(store.splits["xsub"])[ids]})


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of stores: every third clip has no label, those are left out, and none has one."""
    folder = tmp_path_factory.mktemp("labels")
    whole = write_synthetic_store(folder / "whole", subjects=4, repetitions=1)
    everyone = np.arange(len(whole))
    some: list[int | None] = [int(label) if i % 3 else None for i, label in enumerate(whole.labels)]
    copied(whole, folder / "some", some, everyone)
    copied(whole, folder / "fewer", some, everyone[everyone % 3 > 0])
    copied(whole, folder / "none", [None] * len(whole), everyone)
    return folder


def test_a_missing_label_is_minus_one_in_a_store_that_opens(stores: Path) -> None:
    some, none, whole = (open_store(stores / name) for name in ("some", "none", "whole"))
    assert (some.labels[::3] == NO_LABEL).all() and NO_LABEL == -1
    assert np.array_equal(some.labels[1::3], whole.labels[1::3])
    assert (none.labels == NO_LABEL).all() and none.class_names == ()
    for part in ("train", "test"):
        ids = some.ids("xsub", part)
        assert np.array_equal(some.labelled("xsub", part), ids[ids % 3 > 0])
        assert len(none.ids("xsub", part)) and not len(none.labelled("xsub", part))


def test_training_sees_all_clips_and_scores_those_with_labels(
    stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, scored = open_store(stores / "some"), []
    true_score = nearest_neighbour

    def watched(encoder, clips, train_ids, test_ids, *rest):  # noqa: ANN001, ANN202
        scored.append((train_ids.tolist(), test_ids.tolist()))
        return true_score(encoder, clips, train_ids, test_ids, *rest)

    monkeypatch.setattr("sjepa_fast.training.setup.nearest_neighbour", watched)
    run = trained(stores / "some", tmp_path / "run", *SHORT)
    used = [store.labelled("xsub", part).tolist() for part in ("train", "test")]
    assert scored == [tuple(used)] * 3, "before, and after each step"
    assert (run / "train_ids.txt").read_text().split() == [
        str(store.names[i]) for i in store.ids("xsub", "train")
    ]
    assert all("knn" in row for row in metrics(run)) and (run / "confusion.png").exists()


def test_scores_are_those_of_a_store_without_the_unlabelled_clips(
    stores: Path, tmp_path: Path
) -> None:
    run = trained(stores / "some", tmp_path / "run", *SHORT)
    found = {}
    for name in ("some", "fewer"):
        root = ("--data.root", str(stores / name), "--encoder", "raw")
        for protocol in ("knn", "linear", "retrieval"):
            done = call(evaluate.main, protocol, str(run), *root)
            assert done.returncode == 0, done.stderr
            left_out = "no label and are left out" in done.stdout
            assert left_out == (name == "some")
            path = run / "results" / f"{protocol}-raw-{name}-xsub.json"
            found[protocol, name] = json.loads(path.read_text())
    for protocol in ("knn", "linear", "retrieval"):
        some, fewer = found[protocol, "some"], found[protocol, "fewer"]
        for key in ("headline", "predicted", "per_class", "train_clips", "test_clips"):
            assert some[key] == fewer[key], (protocol, key)
        store = open_store(stores / "some")
        assert some["clips_without_label"] == (np.asarray(store.labels) == NO_LABEL).sum()
        assert fewer["clips_without_label"] == 0


def test_drawn_subsets_and_validation_clips_have_labels(stores: Path) -> None:
    store = open_store(stores / "some")
    for balanced in (False, True):
        drawn = draw_subset(store, "xsub", 1.0, 0, balanced=balanced)
        assert np.array_equal(drawn, store.labelled("xsub", "train"))
    fit, held_out, _ = validation_parts(store, "xsub")
    assert np.array_equal(np.sort(np.concatenate([fit, held_out])), store.labelled("xsub", "train"))


def test_without_any_label_a_run_is_whole_and_says_what_it_left_out(
    stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(stores / "none", tmp_path / "run", *SHORT)
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if "kNN" in line] == [
        "no kNN scores: no clip of none has a label"
    ]
    assert not any("knn" in row for row in metrics(run)) and len(metrics(run)) == 2
    assert (run / "curves.png").exists() and (run / "mask.png").exists()
    assert not (run / "confusion.png").exists() and not list((run / "results").iterdir())
    assert call(doctor.main, str(run)).returncode == 0
    done = call(embed.main, str(run), str(stores / "none"), "--out", str(tmp_path / "a.npz"))
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "a.npz") as file:
        assert len(file["features"]) == len(open_store(stores / "none"))
    for protocol in ("knn", "linear", "finetune", "semi"):
        done = call(evaluate.main, protocol, str(run))
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        for words in ("data.root", "no clip of none has a label", "labels.csv", "docs/data.md"):
            assert words in done.stderr
    assert not list((run / "results").iterdir())
    root = ("--data.root", str(stores / "none"), "--data.split", "xsub")
    done = call(evaluate.main, "supervised", str(tmp_path / "new"), *root)
    assert done.returncode == 2 and "has a label" in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_part_without_labels_is_named(stores: Path, tmp_path: Path) -> None:
    whole = open_store(stores / "whole")
    tested = set(whole.ids("xsub", "test").tolist())
    labels = [None if i in tested else int(x) for i, x in enumerate(whole.labels)]
    copied(whole, tmp_path / "half", labels, np.arange(len(whole)))
    run = trained(tmp_path / "half", tmp_path / "run", *SHORT)
    done = call(evaluate.main, "knn", str(run))
    assert done.returncode == 2 and "data.split: no test clip of xsub has a label" in done.stderr
    words = words_of_run(tmp_path / "half", tmp_path / "ablation", *SHORT)
    done = call(ablate.main, *words, "--axis", "optim.lr", "--values", "1e-3")
    assert done.returncode == 2 and "xsub has no test clip to score" in done.stderr, done


def test_a_format_with_a_label_for_every_clip_is_not_written(stores: Path, tmp_path: Path) -> None:
    arguments = ["--format", "ctrgcn", "--split", "xsub", "--out", str(tmp_path / "out.npz")]
    done = call(export.main, str(stores / "some"), *arguments)
    assert done.returncode == 2 and "has no label; the format needs one" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_writer_remembers_clips_without_a_label(
    tmp_path: Path, stores: Path
) -> None:
    store = open_store(stores / "whole")
    layout, names = store.layout, store.class_names
    with (
        pytest.raises(KeyboardInterrupt),
        StoreWriter(tmp_path / "s", "x", layout, names, job="j") as writer,
    ):
        for i in range(4):
            writer.add(str(i), store.clip(i), i if i % 2 else None, {})
        raise KeyboardInterrupt
    with StoreWriter(tmp_path / "s", "x", layout, names, job="j") as writer:
        assert writer.done == 4
        with pytest.raises(InputError, match="label: -1 of clip 5"):
            writer.add("5", store.clip(5), -1, {})
        made = writer.finish({})
    assert made.labels.tolist() == [NO_LABEL, 1, NO_LABEL, 3]
