"""A clip that is not finite is named before it reaches a network or a probe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sjepa_fast import evaluate, train
from sjepa_fast.data.finite import check_finite
from sjepa_fast.data.store import JOINTS, MANIFEST, digest, fingerprint_of, open_store
from sjepa_fast.errors import InputError
from tests.tiny import call, flags, trained, words_of_run

SHORT: dict[str, object] = {"optim.length": 2, "optim.unit": "steps", "data.split": "xsub"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_all_clips_with_a_broken_number_are_named(value: float, dtype: torch.dtype) -> None:
    first, names = torch.tensor([0, 2, 7, 8]), ["a", "b", "c\x1b[2J", "d"]
    rows = torch.arange(10.0)[:, None, None].expand(10, 3, 3).to(dtype).clone()
    check_finite(rows, first, names)
    rows[7, 1, 2] = value
    with pytest.raises(InputError, match=r"data.root: coordinates of 'c\\x1b\[2J' are NaN or inf"):
        check_finite(rows, first, names)
    rows[0, 0, 0] = value
    rows[1, 0, 0] = value
    with pytest.raises(InputError, match=r"of 'a', 'c"):
        check_finite(rows, first, names)
    rows[:] = value
    with pytest.raises(InputError, match="and 1 more"):
        check_finite(rows, first, names)


def test_largest_numbers_and_no_clips_are_finite() -> None:
    for dtype in (torch.float16, torch.float32):
        rows = torch.full((4, 2, 3), torch.finfo(dtype).max, dtype=dtype)
        check_finite(rows, torch.tensor([0, 3]), ["a", "b"])
    check_finite(torch.empty(0, 2, 3), torch.empty(0, dtype=torch.int64), [])


def hostile(store: Path, out: Path, part: str) -> tuple[Path, str]:
    """A store with right checksums whose second clip of a part has NaN rows, and its name."""
    opened = open_store(store)
    bad = int(opened.ids("xsub", part)[1])
    shutil.copytree(store, out)
    joints = np.load(out / JOINTS)
    joints[opened.offsets[bad] : opened.offsets[bad + 1]] = np.nan
    np.save(out / JOINTS, joints)
    manifest = json.loads((out / MANIFEST).read_text())
    del manifest["checksum"]
    manifest["files"][JOINTS]["sha256"] = digest(out / JOINTS)
    manifest["checksum"] = fingerprint_of(manifest)
    (out / MANIFEST).write_text(json.dumps(manifest))
    return out, str(opened.names[bad])


@pytest.mark.parametrize(("backend", "part"), [("resident", "test"), ("disk", "train")])
def test_training_names_a_clip_of_a_hostile_store(
    backend: str, part: str, store: Path, tmp_path: Path
) -> None:
    root, name = hostile(store, tmp_path / "store", part)
    own = flags({**SHORT, "data.backend": backend})
    done = call(train.main, *words_of_run(root, tmp_path / "run", *own))
    assert done.returncode == 2, done.stderr
    assert name in done.stderr and done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def streamed(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    own = flags({**SHORT, "data.backend": "disk", "data.workers": 0})
    return trained(store, tmp_path_factory.mktemp("streamed") / "run", *own)


@pytest.mark.parametrize(("protocol", "part"), [("knn", "test"), ("linear", "train")])
def test_a_probe_names_a_clip_of_a_hostile_store(
    protocol: str, part: str, store: Path, streamed: Path, tmp_path: Path
) -> None:
    root, name = hostile(store, tmp_path / "store", part)
    words = [str(streamed), f"--data.root={root}"]
    done = call(evaluate.main, protocol, *words)
    assert done.returncode == 2, done.stderr
    assert name in done.stderr and done.stderr.count("\n") == 1
