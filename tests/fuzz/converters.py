"""Foreign checkpoints, and what is made of them."""

from __future__ import annotations

import argparse
import functools
import io
import pickle
import pickletools
import random
import struct
import zipfile
from pathlib import Path

import torch

from sjepa_fast.convert import ConvertConfig, convert, read_state
from tests.fuzz.mutate import lie_about_size, mutate_bytes, put, zip_bytes
from tests.fuzz.sandbox import CANARY
from tests.fuzz.target import Target
from tests.test_convert import HEADS, mamp_state


@functools.cache
def _members() -> dict[str, bytes]:
    """The entries of a checkpoint as MAMP's script writes it, with tiny tensors."""
    file = io.BytesIO()
    whole = {"model": mamp_state(), "epoch": 400, "args": argparse.Namespace(lr=1e-3, tau=0.8)}
    torch.save(whole, file)
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _calls(rng: random.Random) -> bytes:
    """A pickle that would run something, in one of the ways that pickles have."""
    module, name = rng.choice(
        (
            ("os", "system"),
            ("posix", "system"),
            ("builtins", "exec"),
            ("builtins", "eval"),
            ("subprocess", "check_output"),
            ("torch.serialization", "load"),
            ("torch", "load"),
            ("numpy", "load"),
            ("builtins", "getattr"),
            ("builtins", "bytearray"),
            ("collections", "Counter"),
            ("torch._utils", "_rebuild_tensor_v2.__globals__"),
            ("argparse", "Namespace.__init__.__globals__"),
        )
    )
    text = f"__import__('os').system('{CANARY}')".encode()
    argument = b"X" + struct.pack("<I", len(text)) + text
    number = b"\x8a\x05" + (2**33).to_bytes(5, "little")
    argument = rng.choice((argument, number))
    found = f"c{module}\n{name}\n".encode()
    stacked = b"\x8c" + bytes([len(module)]) + module.encode()
    stacked += b"\x8c" + bytes([len(name)]) + name.encode() + b"\x93"
    body = rng.choice(
        (
            found + argument + b"\x85R",
            stacked + argument + b"\x85R",
            f"(i{module}\n{name}\n".encode(),
            b"(" + found + argument + b"o",
            found + argument + b"\x85\x81",
            found + b")R}" + argument + b"K\x01sb",
        )
    )
    return b"\x80\x02}X\x05\x00\x00\x00model" + body + b"s."


def _bombs(rng: random.Random) -> bytes:
    """A pickle that is small and asks for much."""
    deep = b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"K\x01s."
    dict_ = b"ccollections\nOrderedDict\nq\x00"
    pairs = b"](" + b"".join(b"K" + bytes([i]) + b"K\x00\x86" for i in range(256)) + b"eq\x01"
    many = b"\x80\x02" + dict_ + pairs + b"](" + b"h\x00h\x01\x85R" * 5_000 + b"e."
    memo = b"\x80\x02}r\xff\xff\xff\x7f."
    lists = b"\x80\x02" + b"]" * 100_000 + b"."
    long = b"\x80\x02\x8b\xff\xff\xff\x7f."
    text = b"\x80\x02X\xff\xff\xff\x7fabc."
    storage = (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\n"
        b"FloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu\x8a\x06\x00\x00\x00\x00\x00\x01tQK\x00"
        b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR."
    )
    wide = storage.replace(b"\x8a\x06\x00\x00\x00\x00\x00\x01tQ", b"K\x01tQ")
    stretched = wide.replace(b"\x85K\x01\x85\x89", b"\x85K\x00\x85\x89")
    return rng.choice((deep, many, memo, lists, long, text, storage, wide, stretched))


@functools.cache
def _numbers(data: bytes) -> list[tuple[int, str]]:
    found = ((place, op.name) for op, _, place in pickletools.genops(data) if place is not None)
    return [(place, name) for place, name in found if name in ("BININT", "BININT1", "BININT2")]


def _claims(rng: random.Random, data: bytes) -> bytes:
    """The pickle of a checkpoint with other numbers in it: sizes, strides, storages, offsets."""
    places = _numbers(data)
    changed = bytearray(data)
    for place, name in rng.sample(places, rng.choice((1, 1, 2, 3))):
        size = {"BININT": 4, "BININT1": 1, "BININT2": 2}[name]
        low = 0 if size < 4 else -(2**31)
        choices = (0, 1, 2, 255, 65535, 2**31 - 1, -1, -(2**31), rng.randrange(2**16))
        number = rng.choice([n for n in choices if low <= n < 2 ** (8 * size - (size == 4))])
        changed[place + 1 : place + 1 + size] = number.to_bytes(size, "little", signed=low < 0)
    return bytes(changed)


def _checkpoint(rng: random.Random, folder: Path) -> Path:
    members = dict(_members())
    pickled = next(name for name in members if name.endswith("data.pkl"))
    kind = rng.randrange(10)
    if kind == 0:
        members[pickled] = _calls(rng)
    elif kind == 1 and rng.random() < 0.2:
        # A second or two each.
        members[pickled] = _bombs(rng)
    elif kind in (2, 3, 4):
        members[pickled] = _claims(rng, members[pickled])
    elif kind == 5:
        members[pickled] = mutate_bytes(rng, members[pickled])
    elif kind == 6:
        name = rng.choice(list(members))
        members[name] = rng.choice((b"", members[name] * 2, members[name][:-1], b"\xff" * 64))
    elif kind == 7 and rng.random() < 0.5:
        members.pop(rng.choice(list(members)))
    elif kind == 7:
        members[rng.choice(("../x", "/data.pkl", "a/data.pkl", "x"))] = b"x"
    data = zip_bytes(members, compress=rng.random() < 0.05)
    if kind == 8:
        data = mutate_bytes(rng, data)
    elif kind == 9:
        data = lie_about_size(rng, data)
    if rng.random() < 0.02:
        file = io.BytesIO()
        torch.save({"model": mamp_state()}, file, _use_new_zipfile_serialization=False)
        data = mutate_bytes(rng, file.getvalue())
    elif rng.random() < 0.02:
        data = rng.choice((_calls(rng), _bombs(rng), pickle.dumps({"model": 1})))
    return put(rng, folder / "foreign.pth", data)


def _convert(path: Path) -> None:
    convert(ConvertConfig("mamp", path, path.parent / "run", heads=HEADS))


def _read(path: Path) -> None:
    for name, value in read_state(path).items():
        assert isinstance(name, str)
        assert value.numel() * value.itemsize <= 2**20, (name, value.shape)
        value.sum()


def _warm(folder: Path) -> None:
    path = folder / "good.pth"
    path.write_bytes(zip_bytes(_members(), compress=False))
    _convert(path)


TARGETS = (
    Target("foreign checkpoint", _checkpoint, _read, _warm),
    Target("convert mamp", _checkpoint, _convert, _warm),
)
