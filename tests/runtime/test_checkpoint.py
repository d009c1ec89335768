"""A checkpoint is whole or refused: bytes, steps, names, shapes, types; and what is used then."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from sjepa_fast.errors import InputError
from sjepa_fast.runtime.checkpoint import (
    Checkpoint,
    Contents,
    latest_checkpoint,
    list_checkpoints,
    load_state,
    load_weights,
    resume,
    save_checkpoint,
    verify,
    write_checkpoint,
)
from sjepa_fast.runtime.dist import World
from sjepa_fast.runtime.manifest import write_manifest
from tests.fuzz import checkpoints as fuzz

ALONE = World()


def optimizer_of(model: nn.Module, *, capturable: bool = False) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=0.1, fused=True, capturable=capturable)


def stepped(steps: int) -> tuple[nn.Module, torch.optim.AdamW]:
    """A model and its optimiser after some steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32))
    optimizer = optimizer_of(model)
    for _ in range(steps):
        model(torch.randn(4, 64)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints after two and four steps."""
    for step in (2, 4):
        save_checkpoint(tmp_path, step, *stepped(step), keep=2)
    return tmp_path


def newest(run: Path) -> Path:
    return list_checkpoints(run)[-1].path


def test_what_is_loaded_is_what_was_saved(run: Path) -> None:
    model, optimizer = stepped(4)
    other, others = stepped(1)
    resumed = resume(run, other, others, ALONE)
    assert resumed is not None and resumed.step == 4 and resumed.recent_K3.shape == (0, 3)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        for key, value in optimizer.state[mine].items():
            assert torch.equal(others.state[theirs][key], value), key


def test_how_to_step_is_the_devices_and_not_the_runs(tmp_path: Path) -> None:
    """A run begun on a CPU is captured on a GPU: its optimiser must be `capturable` there."""
    model, begun = stepped(1)
    saved = save_checkpoint(tmp_path, 1, model, begun, keep=1)
    resumed = optimizer_of(model, capturable=True)
    load_state(saved, resumed)
    (group,) = resumed.param_groups
    assert group["capturable"] and group["fused"] and group["lr"] == 0.1
    for weight in model.parameters():
        for key, value in begun.state[weight].items():
            assert torch.equal(resumed.state[weight][key], value)


def test_every_flipped_bit_is_seen(run: Path) -> None:
    folder = newest(run)
    flipped = 0
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for at in {0, 7, 8, len(whole) // 3, len(whole) // 2, len(whole) - 1}:
            changed = bytearray(whole)
            changed[at] ^= 1 << (at % 8)
            path.write_bytes(changed)
            with pytest.raises(InputError, match=path.name):
                verify(Checkpoint(folder, 4))
            flipped += 1
        path.write_bytes(whole)
    assert flipped >= 17
    verify(Checkpoint(folder, 4))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: folder.rename(folder.with_name("step-00000007")), "holds step 4"),
        (lambda folder: (folder / "checkpoint.json").unlink(), "has no checkpoint.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "No such file"),
        (lambda folder: os.truncate(folder / "state.safetensors", 100), "bytes that were written"),
        (lambda folder: swap(folder, "model.safetensors"), "model.safetensors"),
        (lambda folder: swap(folder, "state.safetensors"), "state.safetensors"),
        (lambda folder: swap(folder, "checkpoint.json"), "holds step 2"),
        (lambda folder: pipe(folder / "state.safetensors"), "is no regular file"),
        (lambda folder: pipe(folder / "checkpoint.json"), "is no regular file"),
        (lambda folder: (folder / "checkpoint.json").write_text("[" * 60000), "is damaged"),
        (lambda folder: (folder / "checkpoint.json").write_text(""), "is damaged"),
        (lambda folder: respell(folder / "checkpoint.json"), "is damaged"),
    ],
)
@pytest.mark.timeout(60)
def test_a_refused_checkpoint_is_named_and_the_one_before_is_used(
    run: Path, damage: Callable[[Path], object], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(newest(run))
    assert latest_checkpoint(run).step == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and words in said and "step 2 is used" in said, said
    model, optimizer = stepped(1)
    refused = newest(run).name
    resumed = resume(run, model, optimizer, ALONE)
    said = capsys.readouterr().err
    assert resumed is not None and resumed.step == 2
    assert said.count("\n") == 1 and words in said and "going on from step 2" in said, said
    aside = run / "checkpoints" / refused.replace("step", "refused")
    assert aside.is_dir(), "a refused checkpoint is kept, under another name"
    assert [saved.step for saved in list_checkpoints(run)] == [2]


def test_what_lies_where_a_refused_checkpoint_goes_is_replaced(run: Path) -> None:
    for put in (
        Path.mkdir,
        lambda aside: aside.write_text(""),
        lambda aside: aside.symlink_to("x"),
    ):
        save_checkpoint(run, 4, *stepped(4), keep=2)
        aside = newest(run).with_name("refused-00000004")
        if aside.is_dir():
            shutil.rmtree(aside)
        put(aside)
        (newest(run) / "checkpoint.json").write_text("")
        resumed = resume(run, *stepped(1), ALONE)
        assert resumed is not None and resumed.step == 2
        assert (aside / "model.safetensors").exists() and not aside.is_symlink()


def swap(folder: Path, name: str) -> None:
    """Put the older checkpoint's file in."""
    shutil.copy(folder.with_name("step-00000002") / name, folder / name)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def respell(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text())))


def test_where_none_is_left_the_newest_one_is_named(run: Path) -> None:
    for saved in list_checkpoints(run):
        (saved.path / "checkpoint.json").unlink()
    for use in (latest_checkpoint, lambda run: resume(run, *stepped(1), ALONE)):
        with pytest.raises(InputError, match=r"step-00000004 has no checkpoint\.json; .* version"):
            use(run)
    assert len(list_checkpoints(run)) == 2, "nothing was renamed"


def first_moment(change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def craft(tensors: dict[str, Tensor]) -> None:
        tensors["optimizer.0.exp_avg"] = change(tensors["optimizer.0.exp_avg"])

    return craft


@pytest.mark.parametrize(
    ("craft", "words"),
    [
        (first_moment(lambda t: t[:1]), r"optimizer\.0\.exp_avg as \(1, 64\)"),
        (first_moment(lambda t: t.flatten()), r"exp_avg as \(2048,\)"),
        (first_moment(lambda t: t.t().contiguous()), r"exp_avg as \(64, 32\)"),
        (first_moment(lambda t: t.double()), "float64"),
        (first_moment(lambda t: t.int()), "int32"),
        (first_moment(lambda t: t.new_zeros(0, 2**62)), "exp_avg as"),
        (first_moment(lambda t: t.log()), r"exp_avg that is not finite"),
        (lambda t: t.pop("optimizer.0.step"), r"has no optimizer\.0\.step"),
        (lambda t: t.update({"optimizer.9.step": torch.zeros(())}), "which nothing here takes"),
        (lambda t: t.update({"recent": torch.zeros(3)}), "last steps"),
        (lambda t: t.pop("recent"), "last steps"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_whatever_its_checksums_say(
    run: Path, craft: Callable[[dict[str, Tensor]], object], words: str
) -> None:
    """A wrong-shaped moment made the optimiser write outside of its memory."""
    path = newest(run) / "state.safetensors"
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, "pt") as opened:
        notes = opened.metadata()
    craft(tensors)
    safetensors.torch.save_file(tensors, path, notes)
    (path.parent / "checkpoint.json").unlink()
    write_manifest(path.parent, 4)
    model, optimizer = stepped(1)
    before = {
        key: value.clone() for key, value in optimizer.state[next(model.parameters())].items()
    }
    with pytest.raises(InputError, match=words):
        load_state(Checkpoint(path.parent, 4), optimizer)
    for key, value in before.items():
        assert torch.equal(optimizer.state[next(model.parameters())][key], value), "was loaded"


def rewrite(run: Path, name: str, notes: dict[str, str], **changes: Tensor) -> Checkpoint:
    """Rewrite a file of the newest checkpoint, with a manifest that agrees."""
    path = newest(run) / name
    tensors = safetensors.torch.load_file(path) | changes
    with safetensors.safe_open(path, "pt") as opened:
        notes = opened.metadata() | notes
    safetensors.torch.save_file(tensors, path, notes)
    (path.parent / "checkpoint.json").unlink()
    write_manifest(path.parent, 4)
    return Checkpoint(path.parent, 4)


def test_steps_and_groups_are_compared(run: Path) -> None:
    _, optimizer = stepped(1)
    for groups, words in (
        ("[]", "groups of"),
        ('[{"parameters": 4}, {"parameters": 0}]', "groups of"),
        ('[{"parameters": 3}]', "groups of"),
        ('[{"parameters": 4, "weight_decay": 0.5}]', "weight_decay 0.5, not 0.01"),
        ("[" * 10**5, "describes no groups"),
        ("{", "describes no groups"),
    ):
        saved = rewrite(run, "state.safetensors", {"groups": groups})
        with pytest.raises(InputError, match=words):
            load_state(saved, optimizer)
    for name in ("state.safetensors", "model.safetensors"):
        with pytest.raises(InputError, match="is of step '5', not 4"):
            verify(rewrite(run, name, {"step": "5"}))


def test_weights_of_another_type_are_refused(run: Path) -> None:
    saved = rewrite(run, "model.safetensors", {}, **{"0.bias": torch.zeros(32, dtype=torch.int32)})
    model, _ = stepped(1)
    with pytest.raises(InputError, match=r"0\.bias as \(32,\) torch\.int32"):
        load_weights(saved, model)


def test_weights_that_are_not_finite_are_refused_by_name(run: Path) -> None:
    bad = torch.full((32,), math.nan)
    checkpoint = rewrite(run, "model.safetensors", {"step": "4"}, **{"0.bias": bad})
    with pytest.raises(InputError, match=r"0\.bias that is not finite"):
        load_weights(checkpoint, stepped(0)[0])


def test_old_checkpoints_are_dropped_only_before_the_step_that_is_saved(run: Path) -> None:
    newest(run).rename(run / "checkpoints" / "step-00000099")
    save_checkpoint(run, 6, *stepped(6), keep=1)
    assert [saved.step for saved in list_checkpoints(run)] == [6, 99]
    assert latest_checkpoint(run).step == 6


def test_no_checkpoint_is_one_too_many_at_any_time(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was killed in its last save is over, and saves and drops no more."""
    counts = []
    rename = Path.rename

    def counting(self: Path, target: Path) -> Path:
        counts.append(len(list_checkpoints(run)))
        return rename(self, target)

    def killed(*_: object, **__: object) -> None:
        raise SystemExit

    monkeypatch.setattr(Path, "rename", counting)
    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(SystemExit):
        save_checkpoint(run, 6, *stepped(6), keep=2)
    assert counts == [2], "the old one went before the new one came"
    assert [saved.step for saved in list_checkpoints(run)] == [4, 6]
    assert (run / "checkpoints" / ".step-00000002.dropped").is_dir()


def test_what_was_to_be_dropped_comes_back_if_the_new_one_cannot_be_put_in_its_place(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(run, 6, *stepped(6), keep=2)
    assert [saved.step for saved in list_checkpoints(run)] == [2, 4]
    for saved in list_checkpoints(run):
        verify(saved)
    assert len(list((run / "checkpoints").iterdir())) == 2


def test_weights_from_elsewhere_can_be_read_but_not_resumed(tmp_path: Path) -> None:
    model, optimizer = stepped(1)
    saved = write_checkpoint(tmp_path, Contents(0, dict(model.state_dict()), None, []), keep=1)
    verify(saved)
    load_weights(saved, model)
    with pytest.raises(InputError, match="holds no state"):
        load_state(saved, optimizer)


def names_of(folder: Path) -> Iterator[str]:
    return (path.name for path in folder.iterdir())


def test_a_checkpoint_that_cannot_be_written_leaves_all_as_it_was(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = sorted(names_of(run / "checkpoints"))
    with monkeypatch.context() as here, pytest.raises(OSError, match="No space"):
        here.setattr(os, "fsync", full)
        save_checkpoint(run, 6, *stepped(6), keep=1)
    assert sorted(names_of(run / "checkpoints")) == before
    shutil.rmtree(run)
    with pytest.raises(OSError, match="No such file"):
        save_checkpoint(run, 6, *stepped(6), keep=1)
    assert not run.exists(), "a deleted run is not begun again"


def test_paths_need_not_be_utf_8(tmp_path: Path) -> None:
    run = tmp_path / os.fsdecode(b"r\xff\n")
    run.mkdir()
    save_checkpoint(run, 2, *stepped(2), keep=2)
    resumed = resume(run, *stepped(1), ALONE)
    assert resumed is not None and resumed.step == 2


def test_mutated_and_crafted_checkpoints_neither_crash_nor_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A small part of `python -m tests.fuzz checkpoints`."""
    (tmp_path / "good").mkdir()
    (tmp_path / "input").mkdir()
    fuzz.setup(tmp_path / "good")
    outcomes = Counter(fuzz.check(seed, tmp_path / "input") for seed in range(300))
    assert outcomes.keys() == {"accepted", "skipped"}
    assert outcomes["skipped"] > 200, outcomes
    assert capsys.readouterr().err.count("note: ") >= outcomes["skipped"]


def test_a_newer_format_is_refused_by_its_number(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (newest(run) / "checkpoint.json").unlink()
    with monkeypatch.context() as here:
        here.setattr("sjepa_fast.runtime.manifest.FORMAT", 2)
        write_manifest(newest(run), 4)
    with pytest.raises(InputError, match="has the format 2; this version reads 1"):
        verify(Checkpoint(newest(run), 4))
