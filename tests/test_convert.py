"""A MAMP checkpoint gives the features that MAMP's equations give, and bad ones one line."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sjepa_fast.config.files import read_config
from sjepa_fast.config.schema import ModelConfig
from sjepa_fast.convert import ConvertConfig, convert, encoder_weights, main, read_state
from sjepa_fast.data.synthetic import write_synthetic_store
from sjepa_fast.errors import InputError
from sjepa_fast.evaluate import evaluate
from sjepa_fast.evaluation.protocols.knn import KnnRequest
from sjepa_fast.evaluation.request import EvalData
from sjepa_fast.models.encoder import SkeletonTransformer
from sjepa_fast.objectives.mamp import MAMP
from sjepa_fast.runtime.checkpoint import latest_checkpoint, load_weights
from sjepa_fast.skeletons import NTU25
from sjepa_kernels.tubelets import to_tubelets
from tests.tiny import call, run_python

SEGMENTS, JOINTS, LENGTH, WIDTH, DEPTH, HEADS = 4, 25, 4, 32, 3, 4


def mamp_state(seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the names and in the shapes of MAMP's transformer, decoder and all."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return 0.3 * torch.randn(shape, generator=generator)

    state = {
        "joints_embed.proj.weight": random(WIDTH, 3, LENGTH, 1),
        "joints_embed.proj.bias": random(WIDTH),
        "temp_embed": random(1, SEGMENTS, 1, WIDTH),
        "pos_embed": random(1, 1, JOINTS, WIDTH),
        "mask_token": random(1, 1, WIDTH),
        "decoder_embed.weight": random(WIDTH, WIDTH),
        "decoder_embed.bias": random(WIDTH),
        "decoder_temp_embed": random(1, SEGMENTS, 1, WIDTH),
        "decoder_pos_embed": random(1, 1, JOINTS, WIDTH),
        "decoder_pred.weight": random(3 * LENGTH, WIDTH),
        "decoder_pred.bias": random(3 * LENGTH),
    }
    blocks = [f"blocks.{i}." for i in range(DEPTH)] + ["decoder_blocks.0."]
    for block in blocks:
        for name, outputs, inputs in (
            ("attn.qkv", 3 * WIDTH, WIDTH),
            ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", 4 * WIDTH, WIDTH),
            ("mlp.fc2", WIDTH, 4 * WIDTH),
        ):
            state[f"{block}{name}.weight"] = random(outputs, inputs)
            state[f"{block}{name}.bias"] = random(outputs)
    for norm in ("norm", "decoder_norm", *(f"{b}norm{n}" for b in blocks for n in (1, 2))):
        state[f"{norm}.weight"], state[f"{norm}.bias"] = 1 + random(WIDTH), random(WIDTH)
    return state


class Equations:
    """MAMP's networks written out in float64: pre-norm blocks, heads one by one."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.s = {name: value.double() for name, value in state.items()}

    def norm(self, x: Tensor, name: str) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        spread = (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centered / spread * self.s[f"{name}.weight"] + self.s[f"{name}.bias"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.s[f"{name}.weight"].T + self.s[f"{name}.bias"]

    def block(self, x: Tensor, name: str) -> Tensor:
        qkv = self.linear(self.norm(x, f"{name}.norm1"), f"{name}.attn.qkv")
        mixed = []
        size = WIDTH // HEADS
        for head in range(HEADS):
            q, k, v = (part[..., head * size : (head + 1) * size] for part in qkv.chunk(3, dim=-1))
            mixed.append(torch.softmax(q @ k.mT / size**0.5, dim=-1) @ v)
        x = x + self.linear(torch.cat(mixed, dim=-1), f"{name}.attn.proj")
        hidden = self.linear(self.norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        return x + self.linear(hidden, f"{name}.mlp.fc2")

    def encode(self, x_BTVC: Tensor, keep: Tensor | None = None) -> Tensor:
        """Features of all tokens, or of the kept ones of every clip."""
        grid = nn.functional.conv2d(
            x_BTVC.double().permute(0, 3, 1, 2),
            self.s["joints_embed.proj.weight"],
            self.s["joints_embed.proj.bias"],
            stride=(LENGTH, 1),
        )
        x = grid.permute(0, 2, 3, 1) + self.s["temp_embed"] + self.s["pos_embed"]
        x = x.flatten(1, 2)
        x = x if keep is None else x[:, keep]
        for i in range(DEPTH):
            x = self.block(x, f"blocks.{i}")
        return self.norm(x, "norm")

    def decode(self, visible: Tensor, keep: Tensor) -> Tensor:
        """Numbers predicted for every token of the grid."""
        grid = self.s["mask_token"].expand(len(visible), SEGMENTS * JOINTS, WIDTH).clone()
        grid[:, keep] = self.linear(visible, "decoder_embed")
        position = self.s["decoder_temp_embed"] + self.s["decoder_pos_embed"]
        x = self.block(grid + position.flatten(1, 2), "decoder_blocks.0")
        return self.linear(self.norm(x, "decoder_norm"), "decoder_pred")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("convert")
    # As the authors' script saves: parsed arguments and the optimiser beside the weights.
    whole = {"model": mamp_state(), "epoch": 400, "args": argparse.Namespace(lr=1e-3, tau=0.8)}
    torch.save(whole, folder / "mamp.pth")
    request = ConvertConfig("mamp", folder / "mamp.pth", folder / "run", heads=HEADS)
    assert convert(request) == 0
    return folder / "run"


def close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)


def test_features_and_predictions_are_those_of_the_equations(converted: Path) -> None:
    config = read_config(converted / "config.yaml")
    assert config.objective.kind == "mamp" and config.data.eval_crop == 0.95
    model = MAMP(config, NTU25)
    load_weights(latest_checkpoint(converted), model)
    mamp = Equations(mamp_state())
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, SEGMENTS * LENGTH, JOINTS, 3, generator=generator)
    close(model.view_encoder(to_tubelets(x, LENGTH)), mamp.encode(x))
    order = torch.randperm(SEGMENTS * JOINTS, generator=generator)
    keep, mask = order[:10], order[10:]
    visible = model.view_encoder(to_tubelets(x, LENGTH), keep.expand(2, -1))
    close(visible, mamp.encode(x, keep))
    predicted = model.predictor(visible, keep.expand(2, -1), mask.expand(2, -1))
    close(predicted, mamp.decode(mamp.encode(x, keep), keep)[:, mask])


def test_evaluate_opens_the_folder(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = converted.parent / "store"
    write_synthetic_store(store, subjects=2, repetitions=1)
    assert evaluate(KnnRequest(converted, EvalData(root=store)), "knn") == 0
    [file] = (converted / "results").glob("knn-target-*.json")
    found = json.loads(file.read_text())
    assert found["test_clips_seen_in_training"] is None, "nobody knows"
    assert "mamp.pth" in found["trained_on"]["store"]
    assert "knn" in capsys.readouterr().out


def test_what_is_left_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # A fine-tuned encoder with a head, saved from under DistributedDataParallel, without decoder.
    state = {k: v for k, v in mamp_state().items() if "decoder" not in k and k != "mask_token"}
    state |= {"head.fc.weight": torch.zeros(3, 3), "head.fc.bias": torch.zeros(3)}
    torch.save({f"module.{k}": v for k, v in state.items()}, tmp_path / "bare.pth")
    convert(ConvertConfig("mamp", tmp_path / "bare.pth", tmp_path / "run", heads=HEADS))
    said = capsys.readouterr().out
    assert f"{DEPTH} blocks of width {WIDTH}" in said and f"{SEGMENTS * LENGTH} frames" in said
    assert "not taken over: 2 tensors (head)" in said and "predictor is untrained" in said
    narrow = mamp_state() | {"decoder_embed.weight": torch.zeros(WIDTH // 2, WIDTH)}
    torch.save(narrow, tmp_path / "narrow.pth")
    convert(ConvertConfig("mamp", tmp_path / "narrow.pth", tmp_path / "other", heads=HEADS))
    said = capsys.readouterr().out
    assert "decoder_blocks" in said and "predictor is untrained" in said


def test_no_weight_is_left_out_or_invented() -> None:
    sizes = SkeletonTransformer(SEGMENTS, JOINTS, 3 * LENGTH, WIDTH, DEPTH, HEADS)
    weights = encoder_weights(mamp_state(), ModelConfig(width=WIDTH, depth=DEPTH, heads=HEADS))
    assert weights.keys() == sizes.state_dict().keys()


class Hostile:
    """Unpickling it would make a file."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


def damage(state: dict[str, Tensor], how: str, folder: Path) -> object:
    if how == "missing":
        del state["blocks.1.attn.qkv.bias"], state["norm.weight"]
    elif how == "other network":
        return {"conv1.weight": torch.zeros(3)}
    elif how == "shape":
        state["blocks.2.mlp.fc1.weight"] = torch.zeros(WIDTH, WIDTH)
    elif how == "patches":
        state["joints_embed.proj.weight"] = torch.zeros(WIDTH, 3, LENGTH, 5)
    elif how == "axes":
        state["temp_embed"] = torch.zeros(SEGMENTS, WIDTH)
    elif how == "joints":
        state["pos_embed"] = torch.zeros(1, 1, 17, WIDTH)
    elif how == "hostile":
        return {"model": state, "x": Hostile(folder / "made")}
    elif how == "list":
        return [1, 2]
    return state


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", "norm.weight and 1 more"),
        ("other network", "has no joints_embed.proj.weight"),
        ("shape", "blocks.2.fc1.weight: (32, 32)"),
        ("patches", "joints_embed.proj.weight: (32, 3, 4, 5)"),
        ("axes", "temp_embed: (4, 32)"),
        ("joints", "17 joints"),
        ("hostile", "more than tensors"),
        ("list", "no state dict"),
    ],
)
def test_unfit_checkpoints_are_refused(tmp_path: Path, how: str, said: str) -> None:
    torch.save(damage(mamp_state(), how, tmp_path), tmp_path / "bad.pth")
    with pytest.raises(InputError) as error:
        convert(ConvertConfig("mamp", tmp_path / "bad.pth", tmp_path / "run", heads=HEADS))
    assert said in str(error.value)
    assert {p.name for p in tmp_path.iterdir()} == {"bad.pth"}, "nothing made, nothing run"


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04broken"])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(InputError):
        read_state(tmp_path / "bad.pth")


def test_command_line_says_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"x": Hostile(tmp_path / "made")}, tmp_path / "bad.pth")
    (tmp_path / "taken").mkdir()
    monkeypatch.chdir(tmp_path)
    for done in (
        run_python("-m", "sjepa_fast.convert", "mamp", "bad.pth", "run"),
        call(main, "mamp", "bad.pth", "taken"),
    ):
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.pth", "taken"]
