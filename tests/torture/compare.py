"""What a run that was killed must have in common with one that was not: all but times."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor

# Columns of `metrics.jsonl` that are measured with a clock or a meter.
MEASURED = re.compile(r"(^|_)(ms|mb|seconds?|stall)(_|$)")
# Files that must be equal to the byte, once the run's own path is taken out.
TEXTS = ("config.yaml", "data.json", "train_ids.txt", "results/*.json")


class Comparison(NamedTuple):
    """How much was compared, and what was wrong."""

    tensors: int
    rows: int
    files: int
    differences: list[str]
    leftovers: list[str]


def compare(run: Path, reference: Path) -> Comparison:
    """Compare a finished run with the uninterrupted one, bit for bit.

    Weights and optimizer state of all kept checkpoints, rows of metrics, scores and settings.
    Leftovers are files and folders that the uninterrupted run does not have.
    """
    ours, theirs = _state(run), _state(reference)
    wrong = [f"only one has {name}" for name in sorted(ours.keys() ^ theirs.keys())]
    wrong += [k for k in sorted(ours.keys() & theirs.keys()) if not _same(ours[k], theirs[k])]
    rows, expected = _rows(run), _rows(reference)
    if rows != expected:
        wrong.append(f"metrics.jsonl: {rows} and {expected}")
    texts = {name for pattern in TEXTS for name in _names(reference, pattern)}
    for name in sorted(texts):
        if _text(run, name) != _text(reference, name):
            wrong.append(name)
    here, there = set(_names(run, "**/*")), set(_names(reference, "**/*"))
    wrong += [f"missing: {name}" for name in sorted(there - here)]
    return Comparison(len(theirs), len(expected), len(texts), wrong, sorted(here - there))


def _names(run: Path, pattern: str) -> list[str]:
    return [str(path.relative_to(run)) for path in run.glob(pattern)]


def _text(run: Path, name: str) -> str:
    path = run / name
    return path.read_text().replace(str(run), "RUN") if path.exists() else ""


def _rows(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not MEASURED.search(k)} for row in rows]


def _state(run: Path) -> dict[str, Any]:
    """Every tensor and number in the checkpoints, by file and path inside it."""
    found: dict[str, Any] = {}
    for path in sorted(run.glob("checkpoints/step-*/*")):
        name = str(path.relative_to(run))
        if path.suffix == ".safetensors":
            # Not by bytes: the order of the texts in the header is any.
            with safetensors.safe_open(path, "pt") as opened:
                found |= {f"{name}:{k}": v for k, v in (opened.metadata() or {}).items()}
                found |= {f"{name}:{k}": opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118
        elif path.suffix == ".pt":
            found |= dict(_leaves(torch.load(path, weights_only=True), f"{name}:"))
    return found


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list | tuple):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            yield from _leaves(inner, f"{path}{key}.")
    else:
        yield path, value


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor):
        return bool(a == b)
    # By bytes: a NaN equals itself, and 0 is not -0.
    return (
        isinstance(b, Tensor)
        and (a.dtype, a.shape) == (b.dtype, b.shape)
        and a.numpy().tobytes() == b.numpy().tobytes()
    )
