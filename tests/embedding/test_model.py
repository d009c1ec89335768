"""`sjepa_fast.load` and `Model`: features equal the evaluation's; bad input is refused in words."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sjepa_fast
from sjepa_fast.config.schema import Pool
from sjepa_fast.data.store import Store, open_store
from sjepa_fast.data.store_writer import StoreWriter
from sjepa_fast.embedding.model import Features, Model
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.features import CHUNK, clip_features
from sjepa_fast.evaluation.protocols.knn import KnnRequest
from sjepa_fast.evaluation.request import EvalData, EvalRuntime
from sjepa_fast.evaluation.subject import make_encoder, open_subject
from sjepa_fast.skeletons import NTU25
from tests.tiny import as_kinect, flags, trained

RNG = np.random.default_rng(0)
# Nothing is normalised, and frames are chosen by number.
PLAIN = {
    "data.center": False,
    "data.align-yaw": False,
    "data.normalize-size": False,
    "data.whiten": 0,
    "data.sampling": "index",
    "data.stream": "bone",
    "data.eval-crop": 0.9,
    "runtime.dtype": "float32",
}


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in bfloat16 whose clips are normalised and whitened."""
    folder = tmp_path_factory.mktemp("embedding") / "run"
    return trained(store, folder, "--optim.length=2")


@pytest.fixture(scope="module")
def half(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Some of the clips in half precision, one with a body that is absent."""
    whole = open_store(store)
    folder = tmp_path_factory.mktemp("half") / "store"
    with StoreWriter(folder, "half", NTU25, whole.class_names, dtype="float16") as writer:
        for i in range(0, len(whole), 12):
            writer.add(str(whole.names[i]), whole.clip(i), int(whole.labels[i]), {})
        parts = np.resize([1, 2], len(writer.table.names)).astype(np.int8)
        return writer.finish({"xsub": parts})


@pytest.fixture(scope="module")
def plain_run(half: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedding") / "plain"
    words = flags({**PLAIN, "data.split": "xsub", "optim.length": 2, "optim.batch-size": 4})
    return trained(half.root, folder, *words)


@pytest.fixture(scope="module")
def model(run: Path) -> Model:
    return sjepa_fast.load(run, device="cpu", dtype="float32")


def evaluated(run: Path, root: Path, pool: Pool, dtype: str = "auto") -> Features:
    """What `evaluate` scores: the features of a store's clips, in their order."""
    runtime = EvalRuntime(device="cpu", dtype=dtype)  # type: ignore[arg-type]
    data = EvalData(root=root, split="xsub")
    subject = open_subject(KnnRequest(run, data=data, runtime=runtime))
    encoder = make_encoder(subject, "target", subject.train_ids)
    ids = torch.arange(len(subject.store))
    found = clip_features(encoder, subject.clips, ids, subject.config, subject.dtype, pool)
    return np.asarray(found)


def all_clips(store: Store) -> list[Any]:
    return [store.clip(i) for i in range(len(store))]


def people(frames: int = 30, bodies: int = 0, joints: int = 25) -> Any:
    """Noise of a person's size."""
    shape = (bodies, frames, joints, 3) if bodies else (frames, joints, 3)
    return RNG.normal(size=shape, scale=0.4)


@pytest.mark.parametrize("pool", ["mean", "joint", "pyramid", "full"])
def test_features_are_those_that_evaluate_scores(run: Path, store: Path, pool: Pool) -> None:
    """Bit for bit: normalisation, whitening, two bodies and the training's bfloat16."""
    model = sjepa_fast.load(run, device="cpu")
    assert model.dtype == torch.bfloat16 and model.config.data.normalize_size
    found = model.embed(all_clips(open_store(store)), pool, batch_size=CHUNK)
    assert found.dtype == np.float32
    assert np.array_equal(found, evaluated(run, store, pool))


def test_features_without_normalisation_are_those_of_evaluate_too(
    plain_run: Path, half: Store
) -> None:
    model = sjepa_fast.load(plain_run, device="cpu")
    found = model.embed(all_clips(half), "joint", batch_size=CHUNK)
    assert np.array_equal(found, evaluated(plain_run, half.root, "joint"))


def test_another_layout_is_mapped_as_evaluate_maps_it(
    model: Model, run: Path, store: Path, tmp_path: Path
) -> None:
    kinect = as_kinect(open_store(store), tmp_path / "kinect")
    found = model.embed(all_clips(kinect), "joint", "kinect20", batch_size=CHUNK)
    assert found.shape == (len(kinect), 20 * 32)
    assert np.array_equal(found, evaluated(run, kinect.root, "joint", "float32"))
    given = dataclasses.replace(kinect.layout, name="my own")
    again = model.embed(kinect.clip(0), "joint", layout=given)
    np.testing.assert_allclose(again[0], found[0], atol=1e-5)


def test_clips_come_in_many_forms(model: Model) -> None:
    one, two = people(), people(20, bodies=2)
    listed = model.embed([one, two])
    assert listed.shape == (2, 32) and listed.dtype == np.float32
    for same in (one, one[None], one.astype(np.float32), torch.from_numpy(one)):
        np.testing.assert_allclose(model.embed(same), listed[:1], atol=1e-5)
    np.testing.assert_allclose(model.embed(two), listed[1:], atol=1e-5)
    np.testing.assert_array_equal(model.embed(clip for clip in (one, two)), listed)
    np.testing.assert_allclose(model.embed([one, two], batch_size=1), listed, atol=1e-5)
    np.testing.assert_array_equal(model.embed(np.stack([two, two]))[0], model.embed([two, two])[1])
    absent = np.concatenate([one[None], np.zeros_like(one)[None]])
    np.testing.assert_array_equal(model.embed([absent, two]), listed)


def test_whole_numbers_and_either_precision_of_clips(model: Model) -> None:
    clip = np.rint(people() * 3).astype(np.int16)
    np.testing.assert_array_equal(model.embed(clip), model.embed(clip.astype(np.float64)))


def test_bodies_may_be_as_many_as_asked_for(model: Model) -> None:
    with pytest.raises(InputError, match=r"3 bodies, the model takes 2; .*bodies=3"):
        model.embed(people(bodies=3))
    assert model.embed(people(bodies=3), bodies=3).shape == (1, 32)


def test_windows_are_clips_of_their_own(model: Model) -> None:
    stream = people(100)
    found = model.embed_windows(stream, window=30, stride=20, pool="joint")
    expected = model.embed([stream[i : i + 30] for i in (0, 20, 40, 60)], "joint")
    np.testing.assert_array_equal(found, expected)
    assert len(model.embed_windows(stream, window=100, stride=1)) == 1


@pytest.mark.parametrize(
    ("window", "stride", "words"),
    [
        (0, 1, "window: 0"),
        (10, 0, "stride: 0"),
        (10, 2.5, "stride: 2.5"),
        (31, 1, "31 frames of 30"),
    ],
)
def test_windows_that_cannot_be_cut(model: Model, window: int, stride: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        model.embed_windows(people(), window, stride)


def test_tokens_are_what_is_pooled(model: Model) -> None:
    clip = people(bodies=2)
    tokens = model.tokens(clip)
    segments = model.config.data.frames // model.config.model.segment_length
    assert tokens.shape == (2, segments, 25, 32) and tokens.dtype == np.float32
    full = model.embed(clip, "full").reshape(segments, 25, 32)
    np.testing.assert_allclose(tokens.mean(axis=0), full, atol=1e-5)
    assert model.tokens(clip[0]).shape == (1, segments, 25, 32)
    assert model.tokens(people(joints=17), layout="coco17").shape == (1, segments, 17, 32)


def test_options_are_heeded(run: Path, model: Model) -> None:
    clip = people()
    rounded = sjepa_fast.load(run, device="cpu", dtype="bfloat16").embed(clip)
    assert np.abs(rounded - model.embed(clip)).max() > 0
    np.testing.assert_allclose(rounded, model.embed(clip), atol=0.05)
    view = sjepa_fast.load(run, encoder="view", device="cpu", dtype="float32")
    assert np.abs(view.embed(clip) - model.embed(clip)).max() > 0
    assert model.device.type == "cpu" and "ntu25" in repr(model)


def with_nan() -> Any:
    clip = people()
    clip[3, 4, 1] = np.nan
    return clip


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "layout": (people(), {"layout": "ntu24"}, "layout: ntu24; nearest: ntu25"),
    "joints": (people(joints=20), {}, "20 joints, ntu25 has 25; name its layout: kinect20"),
    "odd joints": (people(joints=7), {}, "7 joints.*SkeletonLayout"),
    "pool": (people(), {"pool": "max"}, "pool: max; nearest: mean"),
    "NaN": ([people(), with_nan()], {}, "clip 1 has coordinates that are NaN"),
    "empty": (people(frames=0), {}, r"clip 0 has the shape \(0, 25, 3\); give \(T, 25, 3\)"),
    "no clip": ([], {}, "clips: none"),
    "number": (3, {}, "clips: int"),
    "rank": (people()[0], {}, r"shape \(25, 3\)"),
    "plain list": (people().tolist(), {}, r"clip 0 has the shape \(25, 3\)"),
    "learning": (torch.ones(5, 25, 3, requires_grad=True), {}, "clip 0 is no array.*grad"),
    "ragged": ([[[1.0], [1.0, 2.0]]], {}, "clip 0 is no array"),
    "2-D": (people()[..., :2], {}, "2 coordinates for each joint.*prepare generic"),
    "4-D": (np.ones((5, 25, 4)), {}, "4 coordinates"),
    "text": (np.array([[["a"] * 3] * 25]), {}, "type <U1"),
    "objects": (np.array([[[None] * 3] * 25]), {}, "type object"),
    "zero": (np.zeros((5, 25, 3)), {}, "zero everywhere"),
    "millimetres": (people() * 1000, {}, "no metres; divide millimetres by 1000"),
    "whole millimetres": ((people() * 1000).astype(int), {}, "divide millimetres"),
    "centimetres": (people() * 100, {}, "divide centimetres by 100"),
    "beyond float32": (people() * 1e300, {}, "no metres"),
    "batch": (people(), {"batch_size": 0}, "batch_size: 0"),
    "bodies": (people(), {"bodies": 0}, "bodies: 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_with_the_fix(model: Model, name: str) -> None:
    clips, options, words = BAD[name]
    with pytest.raises(ValueError, match=words):
        model.embed(clips, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "float16"}, "dtype: float16"),
        ({"device": "tpu"}, "device: tpu"),
        ({"encoder": "random"}, "encoder: random"),
    ],
)
def test_bad_options_of_load(run: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        sjepa_fast.load(run, **options)
