"""The clips of a page: which, and that their numbers are those of store, mask and networks."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sjepa_fast.data.clips import load_resident
from sjepa_fast.data.store import Store, open_store
from sjepa_fast.evaluation.features import clip_features
from sjepa_fast.objectives.masking import draw_mask
from sjepa_fast.reporting import scene as scenes
from sjepa_fast.reporting.records import read_run_records
from sjepa_fast.reporting.scene import Networks, chosen_clips, flat_map, key_frames, look, scene
from sjepa_fast.reporting.write import scene_of_folder
from sjepa_kernels.tubelets import to_tubelets
from tests.reporting.runs import SHORT, data_of
from tests.tiny import CPU, trained, weights


def array(text: str, kind: str) -> NDArray[Any]:
    return np.frombuffer(base64.b64decode(text), kind)


def test_chosen_clips_are_of_the_test_part_and_of_all_classes_alike(store: Path) -> None:
    whole = open_store(store)
    part, ids = chosen_clips(whole, "xsub", 28)
    assert part == "test" and len(set(ids)) == 28
    assert set(ids) <= set(whole.ids("xsub", "test").tolist())
    assert np.bincount(whole.labels[ids]).tolist() == [2] * 14
    assert np.array_equal(ids[:14], chosen_clips(whole, "xsub", 14)[1]), "the first stay the same"
    assert len(chosen_clips(whole, "xsub", 10**6)[1]) == len(whole.ids("xsub", "test"))


def test_clips_of_a_class_are_taken_at_even_distances() -> None:
    taken = np.sort(scenes._spread(np.arange(100))[:10])
    assert np.diff(taken).min() >= 4 and np.diff(taken).max() <= 18


def found_scene(run: Path, store: Store) -> tuple[Networks, dict[str, Any]]:
    records = read_run_records(run)
    networks = Networks.of(records.config, store, weights(run))
    clips = load_resident(store, records.config.data, CPU)
    found = scene(networks, store, clips, 300_000)
    assert found is not None
    return networks, found


def test_poses_and_masks_are_those_of_the_network(store: Path, sjepa_run: Path) -> None:
    whole = open_store(store)
    networks, found = found_scene(sjepa_run, whole)
    config = networks.config
    clips = load_resident(whole, config.data, CPU)
    _, ids = chosen_clips(whole, config.data.split, scenes.MOST_CLIPS)
    ids = ids[: len(found["clips"])]
    assert [entry["name"] for entry in found["clips"]] == [str(whole.names[i]) for i in ids]
    assert [entry["label"] for entry in found["clips"]] == whole.labels[ids].tolist()
    for row in (0, 7):
        entry, one = found["clips"][row], torch.tensor([ids[row]])
        crop = clips.eval_crop(one, config.data, stream="joint")
        shown = array(entry["poses"], "<i2") / 32767 * entry["reach"]
        shown = shown.reshape(entry["bodies"], -1, 25, 3) + entry["middle"]
        wanted = crop[0, : entry["bodies"], key_frames(config.data.frames)].numpy()
        assert np.abs(shown - wanted).max() < 1e-3, "a millimetre"
        x = to_tubelets(clips.eval_crop(one, config.data).flatten(0, 1), 4)
        seed = torch.tensor(config.seed)
        mask = draw_mask(x, one, clips.max_bodies, seed, seed * 0, config.mask, 25)
        hidden = array(entry["hidden"], "u1").reshape(entry["bodies"], -1)
        seen = [set(ids.tolist()) for ids in mask.ids_keep_BK[: entry["bodies"]]]
        assert [set(np.flatnonzero(row == 0).tolist()) for row in hidden] == seen
        loss = array(entry["loss"], "u1").reshape(hidden.shape)
        assert np.array_equal(loss > 0, hidden == 1), "a loss where masked, and there alone"
        assert (array(entry["attention"], "u1") > 0).all()


def test_features_are_those_that_are_scored(store: Path, sjepa_run: Path) -> None:
    """Absent bodies, which are not computed one by one, are averaged in."""
    whole = open_store(store)
    networks, _ = found_scene(sjepa_run, whole)
    config = networks.config
    clips = load_resident(whole, config.data, CPU)
    one, two = (np.flatnonzero(whole.bodies == count)[:3] for count in (1, 2))
    for rows in (np.concatenate([one, two]), one, two):
        ids = torch.from_numpy(rows)
        wanted = clip_features(
            networks.model.eval_encoder, clips, ids, config, torch.float32, "mean"
        )
        found = look(networks, clips, ids)
        torch.testing.assert_close(found.features, wanted, rtol=1e-4, atol=1e-5)
        assert len(found.joints) == whole.bodies[rows].sum()


def test_without_a_gpu_large_networks_look_at_fewer_clips(
    store: Path, sjepa_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = read_run_records(sjepa_run)
    each = scenes.body_flops(records.config, 25)
    monkeypatch.setattr(scenes, "CPU_FLOPS", 20 * each)
    found = scene_of_folder(records, 780_000)
    assert found is not None
    assert sum(entry["bodies"] for entry in found["clips"]) in (19, 20)


def test_networks_in_the_page_are_the_trained_ones(store: Path, sjepa_run: Path) -> None:
    """Of training, whose model is in memory, and of the checkpoint: the same page."""
    at_the_end = data_of(sjepa_run / "report.html")["groups"][0]["scene"]
    records = read_run_records(sjepa_run)
    later = scene_of_folder(records, 780_000)
    assert later is not None
    assert len(later["clips"]) == len(at_the_end["clips"])
    assert later["ranges"]["loss"] == pytest.approx(at_the_end["ranges"]["loss"], rel=1e-3)
    places = np.array([[[c["x"], c["y"]] for c in s["clips"]] for s in (later, at_the_end)])
    assert np.abs(places[0] - places[1]).max() < 1e-2


def test_predictions_are_there_for_objectives_of_numbers(store: Path, mamp_run: Path) -> None:
    _, found = found_scene(mamp_run, open_store(store))
    assert found["predicted"] == "mamp"
    entry = found["clips"][0]
    truth, guess = (array(entry[key], "<i2") for key in ("poses", "predicted"))
    assert truth.shape == guess.shape and not np.array_equal(truth, guess)


@pytest.mark.parametrize(
    "more",
    [
        (
            "--objective.kind=multiview",
            "--objective.target-norm=none",
            "--objective.regularizer=sigreg",
        ),
        ("--data.stream=bone", "--objective.kind=mamp", "--objective.target-norm=patch"),
    ],
    ids=["multiview", "bones"],
)
def test_what_an_objective_has_not_is_left_out(
    store: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    run = trained(store, tmp_path / "run", *SHORT, *more)
    found = data_of(run / "report.html")["groups"][0]["scene"]
    assert found["predicted"] is None and "predicted" not in found["clips"][0]
    assert ("loss" in found["clips"][0]) == ("--data.stream=bone" in more)
    assert "attention" in found["clips"][0]


def test_the_budget_decides_how_many_clips_there_are(store: Path, sjepa_run: Path) -> None:
    records = read_run_records(sjepa_run)
    few = scene_of_folder(records, 60_000)
    assert few is not None and 3 < len(few["clips"]) < 20
    size = sum(len(str(entry)) for entry in few["clips"])
    assert 0.6 * 60_000 < size < 1.1 * 60_000
    assert scene_of_folder(records, 100) is None


def test_the_map_is_the_projection_of_largest_variance() -> None:
    x = torch.randn(40, 6) * torch.tensor([9.0, 4.0, 1.0, 0.5, 0.3, 0.1])
    x = x @ torch.linalg.qr(torch.randn(6, 6))[0]
    found = flat_map(x + 3)
    values = torch.linalg.svdvals((x - x.mean(0)).double())[:2].numpy()
    assert np.linalg.norm(found, axis=0) == pytest.approx(values, rel=1e-5)
    assert abs(float(found[:, 0] @ found[:, 1])) < 1e-3
    assert flat_map(torch.ones(1, 6)).shape == (1, 2)
    assert np.isfinite(flat_map(torch.full((3, 6), torch.nan))).all()
