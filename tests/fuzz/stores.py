"""Stores of a hostile maker: mutated manifests and arrays, with checksums that fit."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from sjepa_fast.data.store import MANIFEST, fingerprint_of, open_store
from sjepa_fast.data.store_writer import StoreWriter
from sjepa_fast.skeletons import NTU25
from tests.fuzz.mutate import TEXTS, mutate_bytes, mutate_json, mutate_npy, mutate_tree, put
from tests.fuzz.target import Target

_whole: dict[str, Path] = {}


def _setup(folder: Path) -> None:
    clip = np.random.default_rng(0).normal(size=(2, 5, 25, 3)).astype(np.float32)
    with StoreWriter(folder / "whole", "tiny", NTU25, ("a", "b")) as writer:
        for i in range(4):
            writer.add(f"clip{i}", clip[: 1 + i % 2, : 3 + i % 3], i % 2, {"subject": i})
        writer.skip("broken", "NaN")
        writer.finish({"xsub": np.array([1, 2, 0, 1], np.int8)})
    _use(open_store(folder / "whole"))
    _whole["store"] = folder / "whole"


def reseal(root: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest whose sizes and checksums are those of the files beside it."""
    for name, entry in manifest["files"].items():
        path = root / str(name)
        if isinstance(entry, dict) and path.is_file():
            data = path.read_bytes()
            entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["checksum"] = fingerprint_of({k: v for k, v in manifest.items() if k != "checksum"})
    (root / MANIFEST).write_text(json.dumps(manifest))


def _make(rng: random.Random, folder: Path) -> Path:
    root = folder / "store"
    shutil.copytree(_whole["store"], root)
    manifest = json.loads((root / MANIFEST).read_text())
    kind = rng.randrange(6)
    if kind == 0:
        (root / MANIFEST).unlink()
        put(rng, root / MANIFEST, mutate_json(rng, manifest))
        return root
    if kind == 1:
        manifest = mutate_tree(rng, manifest)
        if isinstance(manifest, dict):
            manifest.pop("checksum", None)
            manifest["checksum"] = fingerprint_of(manifest)
        (root / MANIFEST).write_text(json.dumps(manifest))
        return root
    name = rng.choice(sorted(manifest["files"]))
    array = np.load(root / name)
    if kind == 2:
        data = (root / name).read_bytes()
        (root / name).unlink()
        put(rng, root / name, mutate_bytes(rng, data))
    elif kind == 3 and array.dtype.kind in "iu":
        changed = array.copy()
        changed[rng.randrange(len(array))] = (
            rng.choice((-1, 0, 1, 2, 3, 100, 2**31 - 1, -(2**31))) % 128
        )
        np.save(root / name, changed)
    elif kind == 3 and array.dtype.kind == "U":
        words = array.astype("U20")
        words[1] = rng.choice(TEXTS)[:20].replace("\0", "0")
        np.save(root / name, words)
    elif kind == 4:
        other = rng.choice(("x", "../x", "split_", "meta_a b", "split_\x1b", "meta_a/../../x"))
        manifest["files"][f"{other}.npy"] = manifest["files"].pop(name)
        if "/" not in other:
            (root / name).rename(root / f"{other}.npy")
    else:
        (root / name).write_bytes(mutate_npy(rng, array))
    reseal(root, manifest)
    return root


def _use(store: Any) -> None:
    """Do what training and evaluation do with an open store."""
    for index in range(len(store)):
        assert store.clip(index).ndim == 4
    for split in store.splits:
        for part in ("train", "test"):
            store.ids(split, part)
    assert store.max_bodies > 0
    assert len(store.layout.flip_permutation()) == store.layout.num_joints
    _ = [store.class_names[label] for label in store.labels]
    print(store.name, list(store.names), store.class_names, store.skipped, list(store.meta))


def _run(root: Path) -> str | None:
    _use(open_store(root, verify=bool(len(root.parts) % 2)))
    return None


def _run_unverified(root: Path) -> str | None:
    _use(open_store(root, verify=False))
    return None


TARGETS = (
    Target("store", _make, _run, _setup),
    Target("store-unverified", _make, _run_unverified, _setup),
)
