"""Mutated motion capture files, beside a good one, prepared as a folder of clips."""

from __future__ import annotations

import importlib
import json
import random
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from sjepa_fast.data.readers.mocap import PACKAGES
from sjepa_fast.prepare import PrepareConfig, prepare
from tests.data.readers.test_mocap import JOINTS, PELVIS, bvh_text, upright, write_c3d
from tests.fuzz.mutate import mutate_bytes, mutate_text, put
from tests.fuzz.readers import Made, prepared
from tests.fuzz.target import Target, Unavailable

# What a file claims: frames, joints, channels, sizes.
CLAIMS = ("Frames: 999999999", "Frames: -1", "6", "0", "1e30", "nan", "JOINT", "End Site", "{", "}")


@cache
def _bvh() -> str:
    rng = np.random.default_rng(0)
    return bvh_text(rng.normal(size=(6, 3)), rng.normal(0, 20, (6, len(JOINTS), 3)), 1.0)


@cache
def _c3d() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write_c3d(Path(folder, "a.c3d"), 1000 * upright())
        return Path(folder, "a.c3d").read_bytes()


def _folder(folder: Path, kind: str) -> Path:
    raw = folder / "raw"
    raw.mkdir()
    (raw / "labels.csv").write_text("name,label\na,0\nb,1\n")
    if kind == "bvh":
        (raw / "a.bvh").write_text(_bvh())
    else:
        (raw / "layout.json").write_text(json.dumps(PELVIS.to_dict()))
        (raw / "a.c3d").write_bytes(_c3d())
    return raw


def _make_bvh(rng: random.Random, folder: Path) -> Made:
    raw = _folder(folder, "bvh")
    text = mutate_text(rng, _bvh(), CLAIMS)
    if rng.random() < 0.05:
        text = text.replace(b"\n", rng.choice((b"\r", b"\r\n", b" ", b"\n" * 300)))
    put(rng, raw / "b.bvh", text)
    return folder, PrepareConfig("generic", raw, folder / "out")


def _make_c3d(rng: random.Random, folder: Path) -> Made:
    raw = _folder(folder, "c3d")
    put(rng, raw / "b.c3d", mutate_bytes(rng, _c3d()))
    return folder, PrepareConfig("generic", raw, folder / "out")


def _setup(folder: Path) -> None:
    for kind in ("bvh", "c3d"):
        try:
            importlib.import_module(PACKAGES[f".{kind}"])
        except ImportError as error:
            raise Unavailable(f"{error.name} is not installed") from error
        own = folder / kind
        own.mkdir()
        prepare(PrepareConfig("generic", _folder(own, kind), own / "out"))


TARGETS = (
    Target("reader-bvh", _make_bvh, prepared, _setup),
    Target("reader-c3d", _make_c3d, prepared, _setup),
)
