"""Saved models: what is written is what is read, nothing else is, and the card says what it is."""

from __future__ import annotations

import json
import pickle
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sjepa_fast
from sjepa_fast import evaluate
from sjepa_fast.embedding.model import Model
from sjepa_fast.errors import InputError
from sjepa_fast.runtime.manifest import entry_of
from tests.tiny import call, trained

CLIP = np.random.default_rng(0).normal(size=(30, 25, 3), scale=0.4)


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = trained(store, tmp_path_factory.mktemp("saved") / "run", "--optim.length=2")
    for encoder in ("target", "view"):
        words = ["knn", str(folder), "--encoder", encoder, "--k", "1"]
        assert call(evaluate.main, *words).returncode == 0
    (folder / "results" / "broken.json").write_text("{")
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> Model:
    return sjepa_fast.load(run, device="cpu")


@pytest.fixture
def saved(model: Model, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_saved_model_embeds_as_the_run_does(model: Model, saved: Path) -> None:
    assert sorted(file.name for file in saved.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    again = sjepa_fast.load(saved, device="cpu")
    assert again.dtype == model.dtype
    for pool in ("mean", "full"):
        np.testing.assert_array_equal(again.embed(CLIP, pool), model.embed(CLIP, pool))
    twice = saved.with_name("twice")
    again.save_pretrained(twice)
    for name in ("model.safetensors", "config.json"):
        assert (twice / name).read_bytes() == (saved / name).read_bytes()


def test_no_path_of_this_machine_is_saved(run: Path, saved: Path) -> None:
    for file in ("config.json", "README.md"):
        assert str(run.parent) not in (saved / file).read_text()


def test_the_card_has_scores_with_conditions_and_widths(model: Model, saved: Path) -> None:
    card = (saved / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: sjepa_fast\n")
    top1 = {r["encoder"]: r["figures"]["top1_k1"] for r in model.content.results}
    assert set(top1) == {"target", "raw", "random"}, "the view encoder is not the one that is saved"
    for encoder, score in top1.items():
        (line,) = (
            row
            for row in card.splitlines()
            if row.startswith(f"| knn | cosine, fitted | {encoder}")
        )
        assert f"top1_k1 {score:.1f}" in line and "synthetic xview" in line
    segments = model.config.data.frames // model.config.model.segment_length
    for pool, width in (("mean", 32), ("joint", 25 * 32), ("full", segments * 25 * 32)):
        assert f"| {pool} | {width} |" in card
        assert model.embed(CLIP, pool).shape == (1, width)  # type: ignore[arg-type]


def test_results_of_another_checkpoint_are_left_out(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    for file in (copy / "results").glob("knn-target*.json"):
        result = json.loads(file.read_text())
        result["weights"]["sha256"] = "0" * 64
        file.write_text(json.dumps(result))
    found = sjepa_fast.load(copy, device="cpu").content.results
    assert [result["encoder"] for result in found] == ["random", "raw"]


def change_config(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def flip_bit(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def offer_zip(folder: Path) -> None:
    torch.save({"a": torch.zeros(2)}, folder / "model.safetensors")


def offer_pickle(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))


def no_safetensors(folder: Path) -> None:
    """Garbage whose digest is the one that is written down."""
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    change_config(folder, weights=entry_of(folder / "model.safetensors")._asdict())


def other_sizes(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    values["config"]["model"]["width"] = 64
    change_config(folder, config=values["config"])


def newer_key(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    values["config"]["model"]["rotary"] = True
    change_config(folder, config=values["config"])


def other_joints(folder: Path) -> None:
    layout = json.loads((folder / "config.json").read_text())["layout"]
    names = [f"joint_{i}" for i in range(26)]
    change_config(folder, layout=layout | {"joints": names, "parents": [0] * 26})


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a bit of the weights": (flip_bit, "other content than was written"),
    "weights cut short": (cut, "has not the"),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), "No such file"),
    "a zip of torch.save": (offer_zip, "is a pickle, which can run code"),
    "a pickle": (offer_pickle, "is a pickle, which can run code"),
    "garbage": (no_safetensors, "table of tensors that is too long|cannot be read"),
    "another version": (lambda p: change_config(p, format=2, version="9.0"), "format 2.*9.0"),
    "of other code": (lambda p: change_config(p, library_name="timm"), "no sjepa_fast model"),
    "no JSON": (lambda p: (p / "config.json").write_text("{"), "is not JSON"),
    "no digest": (lambda p: change_config(p, weights={}), "no size and sha256"),
    "a field of another type": (lambda p: change_config(p, step="1"), "'1' as step"),
    "other sizes": (other_sizes, "model.safetensors has"),
    "other joints": (other_joints, "not a row for each joint"),
    "a key of a newer version": (newer_key, "model.rotary: no such key"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_model_is_refused(saved: Path, name: str) -> None:
    damage, words = DAMAGE[name]
    damage(saved)
    with pytest.raises(ValueError, match=words):
        sjepa_fast.load(saved, device="cpu")


def test_a_run_whose_checkpoint_is_of_another_version_is_refused(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    for file in copy.glob("checkpoints/*/checkpoint.json"):
        file.unlink()
    with pytest.raises(InputError, match="older version's run goes on with that version alone"):
        sjepa_fast.load(copy)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither config\.yaml nor config\.json"):
        sjepa_fast.load(tmp_path)
    torch.save({"a": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    for place in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(InputError, match=r"is a pickle.*sjepa_fast.convert mamp"):
            sjepa_fast.load(place)
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match="is no folder"):
        sjepa_fast.load(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="does not exist; name a run folder"):
        sjepa_fast.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="model: an empty name; name a run folder"):
        sjepa_fast.load("")


def test_nothing_is_written_over(model: Model, saved: Path, tmp_path: Path) -> None:
    before = (saved / "config.json").stat().st_mtime_ns
    with pytest.raises(InputError, match="is not empty"):
        model.save_pretrained(saved)
    assert (saved / "config.json").stat().st_mtime_ns == before
    (tmp_path / "empty").mkdir()
    model.save_pretrained(tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").exists()


def test_a_place_that_cannot_be_written_is_named(model: Model, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(stat.S_IRUSR | stat.S_IXUSR)
    # The superuser may write there; nobody may make a folder below a file.
    (tmp_path / "file").touch()
    for folder in (closed / "new", tmp_path / "file" / "new", Path("/proc/new")):
        if folder.parent == closed and _may_write(closed):
            continue
        with pytest.raises(InputError, match="cannot be written"):
            model.save_pretrained(folder)
    assert list(closed.iterdir()) == []


def _may_write(folder: Path) -> bool:
    try:
        (folder / "probe").touch()
    except OSError:
        return False
    (folder / "probe").unlink()
    return True
