"""Foreign checkpoints: read as torch reads them, refused where they ask for what is not there."""

from __future__ import annotations

import argparse
import io
import random
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sjepa_fast.convert import ConvertConfig, convert, read_state
from sjepa_fast.errors import InputError
from sjepa_fast.runtime.foreign import Foreign, Stored
from tests.fuzz import converters
from tests.fuzz.mutate import ODD, put_odd, zip_bytes
from tests.test_convert import HEADS, mamp_state


def read(path: Path) -> Any:
    with Foreign(path) as opened:
        return {
            key: opened.tensor(value) if isinstance(value, Stored) else value
            for key, value in opened.content.items()
        }


def refused(path: Path) -> str:
    """The refusal of a checkpoint, which takes neither time nor memory."""
    began = time.monotonic()
    tracemalloc.start()
    with pytest.raises(InputError) as caught:
        read_state(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 256 * 2**20 and time.monotonic() - began < 10
    return str(caught.value)


def test_tensors_are_what_torch_reads(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    numbers = torch.arange(24, dtype=torch.float32)
    module = nn.Linear(3, 2)
    saved = {
        "whole": numbers.clone(),
        "view": numbers[4:16].view(3, 4).T,
        "shared": numbers[8:],
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "parameter": nn.Parameter(torch.ones(2, 3)),
        **{str(t): torch.arange(5).to(t) for t in (torch.bfloat16, torch.half, torch.int64)},
        "bool": torch.tensor([True, False]),
        "state": module.state_dict(),
        "plain": [1, 2.5, None, True, "é", (1, (2, 3)), -(2**40)],
        "args": argparse.Namespace(lr=1e-3, betas=[0.9, 0.95]),
        "ordered": OrderedDict(a=1),
    }
    torch.save(saved, path)
    with torch.serialization.safe_globals([argparse.Namespace]):
        wanted = torch.load(path, weights_only=True)
    found = read(path)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        if isinstance(value, torch.Tensor):
            assert found[key].dtype == value.dtype and torch.equal(found[key], value), key
    assert found["plain"] == saved["plain"] and found["ordered"] == {"a": 1}
    assert found["state"].keys() == module.state_dict().keys()


def test_a_tensor_is_no_larger_than_its_storage(tmp_path: Path) -> None:
    """Four bytes that say that they are 4 TB: stride 0 repeats them."""
    path = tmp_path / "a.pth"
    torch.save({"model": {"x": torch.zeros(1).expand(10**12)}}, path)
    assert "a tensor of 1000000000000 numbers in a storage of 1" in refused(path)


def changed(path: Path, name: str, data: bytes) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {entry: archive.read(entry) for entry in archive.namelist()}
    members[next(entry for entry in members if entry.endswith(name))] = data
    path.write_bytes(zip_bytes(members, compress=False))


@pytest.mark.parametrize("data", [b"", b"\0" * 12, b"\0" * 20])
def test_a_storage_has_the_size_that_is_said(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.pth"
    torch.save({"x": torch.ones(4)}, path)
    changed(path, "data/0", data)
    assert f"has {len(data)} of the 16 bytes" in refused(path)


def bombs() -> list[bytes]:
    return sorted({converters._bombs(random.Random(seed)) for seed in range(60)})


@pytest.mark.parametrize("number", range(9))
def test_small_pickles_that_ask_for_much_are_refused(tmp_path: Path, number: int) -> None:
    found = bombs()
    assert len(found) == 9
    path = tmp_path / "a.pth"
    torch.save({"x": torch.ones(4)}, path)
    changed(path, "data.pkl", found[number])
    if found[number].startswith(b"\x80\x02}r"):
        # An empty dict, remembered under a number for which C would make a table of 32 GiB.
        assert read(path) == {}
    else:
        refused(path)


@pytest.mark.parametrize("seed", range(40))
def test_pickles_that_call_are_refused(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "a.pth"
    torch.save({"x": torch.ones(4)}, path)
    changed(path, "data.pkl", converters._calls(random.Random(seed)))
    assert "more than tensors and plain values" in refused(path)


def test_older_and_compressed_formats_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"x": torch.ones(4)}, path, _use_new_zipfile_serialization=False)
    assert "if PyTorch before 1.6 wrote it" in refused(path)
    file = io.BytesIO()
    torch.save({"x": torch.zeros(2**20)}, file)
    with zipfile.ZipFile(file) as archive:
        members = {entry: archive.read(entry) for entry in archive.namelist()}
    path.write_bytes(zip_bytes(members, compress=True))
    assert "is compressed" in refused(path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ODD)
def test_a_checkpoint_is_a_regular_file(tmp_path: Path, kind: str) -> None:
    put_odd(kind, tmp_path / "a.pth")
    assert "a.pth" in refused(tmp_path / "a.pth")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path: Path, bad: float) -> None:
    state = mamp_state()
    state["blocks.1.mlp.fc1.weight"][3, 5] = bad
    torch.save(state, tmp_path / "a.pth")
    request = ConvertConfig("mamp", tmp_path / "a.pth", tmp_path / "run", heads=HEADS)
    with pytest.raises(InputError, match=r"^blocks.1.mlp.fc1.weight: holds NaN or an infinity"):
        convert(request)
    assert not (tmp_path / "run").exists()


def test_a_broken_decoder_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = mamp_state()
    state["decoder_pred.bias"][0] = float("nan")
    torch.save(state, tmp_path / "a.pth")
    convert(ConvertConfig("mamp", tmp_path / "a.pth", tmp_path / "run", heads=HEADS))
    assert "the predictor is untrained" in capsys.readouterr().out


def test_views_of_one_buffer_take_its_memory_once(tmp_path: Path) -> None:
    """A state dict may be views of one flat buffer; read one by one they would be all of it."""
    path = tmp_path / "a.pth"
    flat = torch.zeros(2**20)
    torch.save({f"w{k}": flat[k : k + 4] for k in range(200)}, path)
    tracemalloc.start()
    tensors = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(tensors) == 200 and peak < 32 * 2**20
