"""Checkpoints with changed bytes, and crafted ones whose checksums are right.

A run has a good checkpoint after two steps and a changed one after four. Resuming must take the
older one, or the newer one if it is as it was or a crafted one that fits; the optimiser then steps.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from sjepa_fast.runtime.checkpoint import latest_checkpoint, resume, save_checkpoint
from sjepa_fast.runtime.dist import World
from sjepa_fast.runtime.manifest import MANIFEST, STATE, WEIGHTS, write_manifest
from tests.fuzz.mutate import ODD, cut, flip_bits, mutate_bytes, mutate_tree, nasty, put_odd
from tests.fuzz.target import Target

FILES = (MANIFEST, STATE, WEIGHTS)
# The folders of the checkpoints after two and four steps, by file.
_good: dict[int, dict[str, bytes]] = {}


class Mutant(NamedTuple):
    """A run folder, and whether its newest checkpoint has checksums of what it now holds."""

    run: Path
    crafted: bool


def model_and_optimizer() -> tuple[nn.Module, torch.optim.AdamW]:
    """A tiny model that has not been trained, and what trains it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6))
    groups = [{"params": [model[0].weight]}, {"params": list(model.parameters())[1:]}]
    return model, torch.optim.AdamW(groups, lr=0.01, fused=True)


def step(model: nn.Module, optimizer: torch.optim.AdamW, times: int) -> None:
    """Train on noise."""
    for _ in range(times):
        model(torch.randn(3, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def setup(folder: Path) -> None:
    """Write the good checkpoints, and resume from them once."""
    model, optimizer = model_and_optimizer()
    for steps in (2, 4):
        step(model, optimizer, 2)
        saved = save_checkpoint(folder, steps, model, optimizer, keep=2)
        _good[steps] = {path.name: path.read_bytes() for path in saved.path.iterdir()}
    assert run(Mutant(folder, crafted=False)) == "accepted"


# Changes of the newest checkpoint's folder; those of `CRAFTS` get checksums that are right.


def _bits(rng: random.Random, folder: Path) -> None:
    flip_bits(rng, folder / rng.choice(FILES), most=8)


def _bytes(rng: random.Random, folder: Path) -> None:
    path = folder / rng.choice(FILES)
    path.write_bytes(mutate_bytes(rng, path.read_bytes()))


def _cut(rng: random.Random, folder: Path) -> None:
    cut(rng, folder / rng.choice(FILES))


def _swap(rng: random.Random, folder: Path) -> None:
    for name in rng.sample(FILES, rng.choice((1, 2, 3))):
        (folder / name).write_bytes(_good[2][name])


def _exchange(rng: random.Random, folder: Path) -> None:
    one, other = rng.sample(FILES, 2)
    kept = (folder / one).read_bytes()
    (folder / one).write_bytes((folder / other).read_bytes())
    (folder / other).write_bytes(kept)


def _rename(rng: random.Random, folder: Path) -> None:
    folder.rename(folder.with_name(f"step-{rng.choice((3, 5, 8, 40, 99999999)):08d}"))


def _odd(rng: random.Random, folder: Path) -> None:
    path = folder / rng.choice(FILES)
    path.unlink()
    put_odd(rng.choice(ODD), path)


def _manifest(rng: random.Random, folder: Path) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps(mutate_tree(rng, json.loads(path.read_text())), indent=2) + "\n")


def _remake(rng: random.Random, tensor: Tensor) -> Tensor:
    """Return another tensor in place of one: shape, type, or values that are not finite."""
    size = rng.choice((0, 1, 2, 6, 7, 8, 48, 2**16))
    kind = rng.choice((torch.float64, torch.int32, torch.bool, torch.bfloat16, torch.uint8))
    return rng.choice(
        (
            lambda: tensor.flatten()[: rng.randrange(1, max(2, tensor.numel()))].clone(),
            lambda: torch.ones(size),
            lambda: torch.ones(size, rng.choice((0, 1, 6, 8))),
            lambda: torch.ones(0, 2**62),
            lambda: torch.ones([1] * 70),
            lambda: tensor.to(kind),
            lambda: tensor.t().contiguous() if tensor.ndim == 2 else tensor[None],
            lambda: torch.full_like(tensor, rng.choice((float("nan"), float("inf"), -1.0, 1e38))),
            lambda: torch.ones(()),
        )
    )()


def _tensors(rng: random.Random, folder: Path) -> None:
    path = folder / rng.choice((STATE, WEIGHTS))
    tensors = safetensors.torch.load(path.read_bytes())
    with safetensors.safe_open(path, "pt") as opened:
        notes = opened.metadata()
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(sorted(tensors))
        if rng.random() < 0.2:
            tensors[rng.choice(("optimizer.9.exp_avg", "optimizer.-1.step", "x", name))] = (
                tensors.pop(name)
            )
        else:
            tensors[name] = _remake(rng, tensors[name])
    safetensors.torch.save_file(tensors, path, notes)


def _header(rng: random.Random, folder: Path) -> None:
    path = folder / rng.choice((STATE, WEIGHTS))
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    tree = mutate_tree(rng, json.loads(content[8:end]))
    head = json.dumps(tree).encode("utf-8", "surrogatepass")
    size = rng.choice((len(head),) * 8 + (0, 2**24, 2**27, 2**63, 2**64 - 1, len(head) + 1))
    path.write_bytes(size.to_bytes(8, "little") + head + content[end:])


def _notes(rng: random.Random, folder: Path) -> None:
    path = folder / rng.choice((STATE, STATE, WEIGHTS))
    tensors = safetensors.torch.load(path.read_bytes())
    with safetensors.safe_open(path, "pt") as opened:
        notes = opened.metadata()
    name = rng.choice(sorted(notes))
    tree = json.loads(notes[name])
    changed = nasty(rng) if rng.random() < 0.3 else mutate_tree(rng, tree)
    notes[name] = rng.choice((json.dumps(changed), "", "[" * 10**5, "9" * 5000, "-0", "\x1b[2J"))
    safetensors.torch.save_file(tensors, path, notes)


def _any_bytes(rng: random.Random, folder: Path) -> None:
    path = folder / rng.choice((STATE, WEIGHTS))
    path.write_bytes(mutate_bytes(rng, path.read_bytes()))


def _missing(rng: random.Random, folder: Path) -> None:
    (folder / rng.choice((STATE, WEIGHTS))).unlink()


CHANGES = (_bits, _bits, _bytes, _cut, _swap, _exchange, _rename, _odd, _manifest)
CRAFTS = (_tensors, _tensors, _tensors, _header, _header, _notes, _any_bytes, _missing)


def make(rng: random.Random, folder: Path) -> Mutant:
    """Write a run whose newest checkpoint was changed, or crafted."""
    for steps, files in _good.items():
        place = folder / "checkpoints" / f"step-{steps:08d}"
        place.mkdir(parents=True)
        for name, content in files.items():
            (place / name).write_bytes(content)
    crafted = rng.random() < 0.5
    change: Callable[[random.Random, Path], Any] = rng.choice(CRAFTS if crafted else CHANGES)
    with contextlib.suppress(UnicodeEncodeError):
        change(rng, place)
    if crafted:
        (place / MANIFEST).unlink()
        write_manifest(place, 4)
    return Mutant(folder, crafted)


def _untouched(run: Path) -> bool:
    """Whether all bytes of the newest checkpoint are as they were written."""
    place = run / "checkpoints" / "step-00000004"
    return all(
        (place / name).is_file()
        and (place / name).stat().st_size == len(content)
        and (place / name).read_bytes() == content
        for name, content in _good[4].items()
    )


def run(mutant: Mutant) -> str:
    """Resume the run, then train on; an evaluation must not use what has changed, either."""
    trusted = mutant.crafted or _untouched(mutant.run)
    if not trusted and latest_checkpoint(mutant.run).step != 2:
        raise AssertionError("a changed checkpoint would be evaluated")
    model, optimizer = model_and_optimizer()
    resumed = resume(mutant.run, model, optimizer, World())
    assert resumed is not None
    step(model, optimizer, 3)
    if resumed.step == 2:
        return "skipped: the newest checkpoint was refused"
    if not trusted:
        raise AssertionError("a changed checkpoint was resumed")
    return "accepted"


def inputs(seed: int, folder: Path) -> Mutant:
    """Write the run of a seed into an empty folder."""
    return make(random.Random(seed), folder)


def check(seed: int, folder: Path) -> str:
    """Write the run of a seed, resume it, and return what happened; the folder is emptied."""
    try:
        return run(inputs(seed, folder)).partition(":")[0]
    finally:
        shutil.rmtree(folder)
        folder.mkdir()


TARGETS = (Target("checkpoints", make, run, setup),)
