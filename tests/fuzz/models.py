"""Saved models with changed bytes, and crafted ones whose weights have the digest that is written.

A model that is opened must also embed a clip, to features that are finite.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

import sjepa_fast
from sjepa_fast.embedding.card import model_card
from sjepa_fast.embedding.loading import TINY
from sjepa_fast.embedding.saved import CONFIG
from sjepa_fast.runtime.manifest import WEIGHTS, entry_of
from tests.fuzz.mutate import ODD, cut, flip_bits, mutate_bytes, mutate_tree, put_odd
from tests.fuzz.target import Target

FILES = (CONFIG, WEIGHTS)
CLIP = np.random.default_rng(0).normal(size=(9, 22, 3), scale=0.4)


def setup(folder: Path) -> None:
    """Load and use the good model once."""
    assert run(TINY) == "accepted"


def _bits(rng: random.Random, folder: Path) -> None:
    flip_bits(rng, folder / rng.choice(FILES))


def _bytes(rng: random.Random, folder: Path) -> None:
    path = folder / rng.choice(FILES)
    path.write_bytes(mutate_bytes(rng, path.read_bytes()))


def _cut(rng: random.Random, folder: Path) -> None:
    cut(rng, folder / rng.choice(FILES))


def _odd(rng: random.Random, folder: Path) -> None:
    path = folder / rng.choice(FILES)
    path.unlink()
    put_odd(rng.choice(ODD), path)


def _values(rng: random.Random, folder: Path) -> None:
    path = folder / CONFIG
    values = json.loads(path.read_text())
    name = rng.choice(sorted(values))
    values[name] = mutate_tree(rng, values[name])
    path.write_text(json.dumps(values), errors="surrogatepass")


def _tensors(rng: random.Random, folder: Path) -> None:
    path = folder / WEIGHTS
    tensors = safetensors.torch.load(path.read_bytes())
    name = rng.choice([*sorted(tensors), "embed.spatial"])
    tensor = tensors[name]
    tensors[name] = rng.choice(
        (
            tensor[:1].clone(),
            tensor.to(rng.choice((torch.float64, torch.int64, torch.bool, torch.uint8))),
            torch.full_like(tensor, float("nan")),
            torch.ones(0, 2**62),
            torch.ones([1] * 70),
        )
    )
    safetensors.torch.save_file(tensors, path)


def _header(rng: random.Random, folder: Path) -> None:
    path = folder / WEIGHTS
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    head = json.dumps(mutate_tree(rng, json.loads(content[8:end]))).encode("utf-8", "surrogatepass")
    size = rng.choice((len(head),) * 8 + (0, 2**24, 2**63, len(head) + 1))
    path.write_bytes(size.to_bytes(8, "little") + head + content[end:])


CHANGES = (_bits, _bytes, _cut, _odd, _values, _values, _values)
CRAFTS = (_tensors, _header)


def make(rng: random.Random, folder: Path) -> Path:
    """Write a model that was changed, or crafted."""
    for name in FILES:
        (folder / name).write_bytes((TINY / name).read_bytes())
    change = rng.choice(CHANGES + CRAFTS)
    change(rng, folder)
    if change in CRAFTS:
        values = json.loads((folder / CONFIG).read_text())
        values["weights"] = entry_of(folder / WEIGHTS)._asdict()
        (folder / CONFIG).write_text(json.dumps(values))
    return folder


def run(folder: Path) -> str:
    """Load the model, embed a clip and write its card."""
    model = sjepa_fast.load(folder, device="cpu")
    layout = model.layout if model.layout.num_joints == 22 else "kinect22"
    assert np.isfinite(model.embed(CLIP, layout=layout)).all()
    assert model_card(model.content).startswith("---\n")
    return "accepted"


TARGETS = (Target("models", make, run, setup),)
