"""Models as files of other runtimes: they give the library's features, and say what they take."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from sjepa_fast import extras
from sjepa_fast.config.schema import Pool, TrainConfig, replace
from sjepa_fast.data.normalize import normalize_clip
from sjepa_fast.embedding import portable
from sjepa_fast.embedding.content import Content
from sjepa_fast.embedding.model import Model
from sjepa_fast.embedding.normalizing import normalize_batch
from sjepa_fast.embedding.portable import FORMATS, METADATA, Embedding, write_portable
from sjepa_fast.errors import InputError, RunStopped
from sjepa_fast.models.encoder import SkeletonTransformer
from sjepa_fast.skeletons import KINECT15, KINECT20, NTU25, SkeletonLayout, layout_named
from tests.tiny import ROOT

RNG = np.random.default_rng(0)
KINDS = [
    pytest.param(
        kind,
        marks=pytest.mark.skipif(
            any(importlib.util.find_spec(name) is None for name in form.packages),
            reason=f"{', '.join(form.packages)}: not all installed (extra export)",
        ),
    )
    for kind, form in FORMATS.items()
]
SMALL = {"width": 32, "heads": 1, "depth": 1, "segment_length": 4}
Files = Callable[[str, str], tuple[Model, Path]]
# What happens to clips before the encoder, in several combinations.
DATA: dict[str, dict[str, Any]] = {
    "small sets": {
        "bodies": 2,
        "center": True,
        "align_yaw": True,
        "normalize_size": True,
        "whiten": 0.5,
        "eval_crop": 1.0,
    },
    "other": {
        "bodies": 3,
        "center": True,
        "align_spine": True,
        "sampling": "index",
        "stream": "bone_motion",
        "eval_crop": 0.7,
    },
}


def content_of(name: str = "small sets", layout: SkeletonLayout = NTU25) -> Content:
    """A model with random weights; its whitening is no identity."""
    config = replace(
        TrainConfig(), data={"frames": 16, **DATA[name]}, model={**SMALL, "layer_scale": 0.5}
    )
    torch.manual_seed(0)
    weights = SkeletonTransformer.of(config, layout.num_joints).state_dict()
    for key in ("embed.whiten_mean", "embed.whiten_matrix"):
        if key in weights:
            weights[key] += 0.1 * torch.randn(weights[key].shape)
    path, trained_on = Path("absent"), {"store": "own", "fingerprint": "f", "split": "xsub"}
    return Content("own", path, config, layout, weights, "target", 7, "float32", trained_on)


def clips_of(count: int, bodies: int, frames: int, joints: int) -> Any:
    return RNG.normal(scale=0.4, size=(count, bodies, frames, joints, 3)).astype(np.float32)


def written(content: Content, path: Path, pool: Pool = "mean", scale: float = 1.0) -> Model:
    """Write a model, and return it; the features that it is compared with can be scaled."""
    model = Model(content, device="cpu", dtype="float32")
    apart = write_portable(
        content,
        path,
        lambda clips: model.embed(clips, pool) * np.float32(scale),
        layout=content.layout,
        pool=pool,
        bodies=content.config.data.bodies,
    )
    assert apart < 1e-5
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Model, Path]]:
    """Models by format and data, each written once: tracing takes seconds."""
    folder = tmp_path_factory.mktemp("portable")

    @functools.cache
    def make(kind: str, name: str) -> tuple[Model, Path]:
        path = folder / f"{name.replace(' ', '-')}.{kind}"
        return written(content_of(name), path, "joint"), path

    return make


def close(found: Any, expected: Any) -> None:
    assert found.shape == expected.shape and found.dtype == np.float32
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("kind", KINDS)
def test_features_and_tokens_are_the_librarys(kind: str, name: str, files: Files) -> None:
    model, path = files(kind, name)
    run, bodies = FORMATS[kind].open(path.read_bytes()), model.config.data.bodies
    for count, frames in ((1, 60), (2, 7), (5, 31), (1, 1), (17, 2)):
        clips = clips_of(count, bodies, frames, 25)
        features, tokens = run(clips)
        close(features, model.embed(list(clips), "joint"))
        assert tokens.shape == (count, bodies, 4, 25, 32)
        close(tokens[-1], model.tokens(clips[-1]))


@pytest.mark.parametrize("kind", KINDS)
def test_bodies_may_be_absent_anywhere(kind: str, files: Files) -> None:
    model, path = files(kind, "small sets")
    clips = clips_of(3, 2, 40, 25)
    clips[0, 1] = 0
    # The library moves the second body to the front.
    clips[1, 0] = 0
    features, tokens = FORMATS[kind].open(path.read_bytes())(clips)
    close(features, model.embed(list(clips), "joint"))
    close(tokens[1, 1:], model.tokens(clips[1]))


@pytest.mark.parametrize("pool", get_args(Pool))
def test_pooling_layout_and_bodies_are_as_asked_for(pool: Pool) -> None:
    content, layout = content_of("other"), layout_named("coco17")
    model = Model(content, device="cpu", dtype="float32")
    clips = clips_of(2, 3, 20, 17)
    embedding = Embedding(content, layout, pool, bodies=3)
    features, tokens = (x.numpy() for x in embedding(torch.from_numpy(clips)))
    close(features, model.embed(list(clips), pool, layout, bodies=3))
    assert tokens.shape == (2, 3, 4, 17, 32)


def metadata(path: Path) -> dict[str, Any]:
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        text = session.get_modelmeta().custom_metadata_map[METADATA]
        assert [x.name for x in session.get_inputs()] == ["clips"]
        assert [x.name for x in session.get_outputs()] == ["features", "tokens"]
    else:
        extra = {f"{METADATA}.json": ""}
        torch.export.load(path, extra_files=extra)
        text = extra[f"{METADATA}.json"]
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_says_what_it_takes_and_where_it_is_from(kind: str, files: Files) -> None:
    _, path = files(kind, "small sets")
    said = metadata(path)
    assert SkeletonLayout.from_dict(said["layout"]) == NTU25
    assert said["input"]["shape"] == ["clips", 2, "frames", 25, 3]
    assert said["outputs"]["tokens"]["shape"] == ["clips", 2, 4, 25, 32]
    assert said["outputs"]["features"] == {"pool": "joint", "averaged_over_bodies": 2}
    inside = said["inside"]
    assert inside["center"] and inside["align_yaw"] and not inside["align_spine"]
    assert (inside["resized_to_frames"], inside["whiten"]) == (16, 0.5)
    assert (said["step"], said["trained_on"]["store"]) == (7, "own")
    assert str(ROOT).encode() not in _unpacked(path), "no name of this machine's files"


def _unpacked(path: Path) -> bytes:
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as file:
        return b"".join(file.read(name) for name in file.namelist())


RUN = """
import sys, numpy as np
class Refused:
    def find_spec(self, name, path=None, target=None):
        assert not name.startswith(("sjepa_fast", "sjepa_kernels")), name
sys.meta_path.insert(0, Refused())
clips = np.load("clips.npy")
if sys.argv[1] == "pt2":
    import torch
    found = torch.export.load("model.pt2").module()(torch.from_numpy(clips))[0].numpy()
else:
    import onnxruntime
    found = onnxruntime.InferenceSession("model.onnx").run(["features"], {"clips": clips})[0]
np.save("features.npy", found)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_needs_nothing_of_ours(kind: str, files: Files, tmp_path: Path) -> None:
    model, path = files(kind, "small sets")
    (tmp_path / f"model.{kind}").write_bytes(path.read_bytes())
    clips = clips_of(4, 2, 33, 25)
    np.save(tmp_path / "clips.npy", clips)
    command = [sys.executable, "-W", "ignore", "-c", RUN, kind]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    close(np.load(tmp_path / "features.npy"), model.embed(list(clips), "joint"))


@pytest.mark.parametrize("layout", [NTU25, KINECT20, KINECT15])
@pytest.mark.parametrize("case", ["noise", "upside down", "one point", "no shoulders"])
def test_batches_are_normalised_as_clips_are(case: str, layout: SkeletonLayout) -> None:
    """Also where a direction has no length, or is opposite to the one that is wanted."""
    clips = clips_of(3, 2, 9, layout.num_joints)
    clips[1, 1] = 0
    if case == "upside down":
        clips[:, :, 0, :, [0, 2]] = 0.25
        clips[:, :, 0, :, 1] = np.linspace(1, -1, layout.num_joints)
        foot, left, right = layout.center, *layout.shoulders
        clips[:, :, 0, foot, 1] = 2
        clips[:, :, 0, left, 0], clips[:, :, 0, right, 0] = 0.5, -0.5
    elif case == "one point":
        clips[:] = np.where(clips.any(axis=(2, 3, 4), keepdims=True), 0.5, 0)
    elif case == "no shoulders":
        for left, right in (layout.shoulders, layout.hips):
            clips[:, :, :, left] = clips[:, :, :, right]
    steps = ("center", "align_spine", "align_yaw", "normalize_size")
    for chosen in [*((step,) for step in steps), steps]:
        data = dataclasses.replace(TrainConfig().data, **dict.fromkeys(chosen, True))
        found = normalize_batch(torch.from_numpy(clips), layout, data).numpy()
        for clip, ours in zip(clips, found, strict=True):
            expected = normalize_clip(
                clip,
                layout,
                center=data.center,
                align_yaw=data.align_yaw,
                size=data.normalize_size,
                spine=data.align_spine,
            )
            scale = max(1.0, float(np.abs(expected).max()))
            np.testing.assert_allclose(ours, expected, rtol=0, atol=3e-6 * scale)


def test_what_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = content_of()
    with pytest.raises(InputError, match=r"model.onyx; name a .pt2 or .onnx file"):
        written(content, tmp_path / "model.onyx")
    with pytest.raises(InputError, match=r"out: .*cannot be written.*name a file in a folder"):
        written(content, tmp_path / "absent" / "model.pt2")
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    fix = r"format: onnx needs onnx, onnxscript, onnxruntime, not.*'sjepa-fast\[export\]'"
    with pytest.raises(InputError, match=fix):
        written(content, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_other_features_is_not_written(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = torch.export.load(files("pt2", "small sets")[1])
    monkeypatch.setattr(portable, "trace", lambda embedding: program)
    with pytest.raises(RunStopped, match=r"are 1\.0e-03 from"):
        written(content_of(), tmp_path / "model.pt2", "joint", scale=1 / 1.001)
    assert list(tmp_path.iterdir()) == []


def test_the_graph_is_of_pytorchs_own_operations(files: Files) -> None:
    _, path = files("pt2", "small sets")
    program = torch.export.load(path)
    calls = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.scaled_dot_product_attention.default" in calls
    others = {call for call in calls if not call.startswith(("aten.", "<built-in function"))}
    assert others == set(), "no region and no operation of this library"
