# SPDX-License-Identifier: Apache-2.0
"""The card of a saved model: what it takes and gives, and its scores with their conditions."""

from __future__ import annotations

import textwrap
from typing import Any, get_args

import torch

from sjepa_fast._version import __version__
from sjepa_fast.config.schema import Pool
from sjepa_fast.config.traits import TRAITS
from sjepa_fast.embedding.content import Content
from sjepa_fast.evaluation.features import pool_tokens
from sjepa_fast.names import printable

_USE = """```python
import sjepa_fast

model = sjepa_fast.load("PATH OR HUB ID OF THIS FOLDER")
features = model.embed(clips)  # a list of arrays (frames, {joints}, 3) in metres, y up
```"""
_NO_SCORES = "None: `python -m sjepa_fast.evaluate knn RUN` makes some, and a new card lists them."


def model_card(content: Content) -> str:
    """Return the card as Markdown, with the head that the Hugging Face Hub reads."""
    config, layout = content.config, content.layout
    data, model = config.data, config.model
    segments = data.frames // model.segment_length
    steps = [
        ("centred on the first frame's root", data.center),
        ("turned so that the spine is upright", data.align_spine),
        ("turned to face the sensor", data.align_yaw),
        ("divided by the body's size", data.normalize_size),
    ]
    chosen = ", ".join(name for name, on in steps if on) or "as they are"
    store, split = (_cell(content.trained_on.get(key)) for key in ("store", "split"))
    objective = config.objective.kind
    earlier = content.trained_on.get("continued_from")
    before = f", from the weights of {_cell(earlier.get('model'))}" if earlier else ""
    kind = content.encoder if TRAITS[objective].target_encoder else "view"
    lines = [
        "---",
        "library_name: sjepa_fast",
        "tags: [skeleton, action-recognition, self-supervised-learning, feature-extraction]",
        "---",
        "",
        f"# {_cell(content.origin)}",
        "",
        *_prose(
            f"The {kind} encoder of `{objective}`, pre-trained without labels for {content.step} "
            f"steps on {store} (split {split}){before}. Made by `sjepa_fast` {__version__}."
        ),
        "",
        _USE.format(joints=layout.num_joints),
        "",
        "## Input",
        "",
        *_prose(
            f"* {layout.num_joints} joints of `{_cell(layout.name)}`: "
            f"{', '.join(_cell(joint) for joint in layout.joints)}."
        ),
        *_prose(
            f"* Clips of any length, resized to {data.frames} frames; bodies: {data.bodies}; "
            f"stream `{data.stream}`; of each clip the middle {100 * data.eval_crop:.0f} %."
        ),
        *_prose(f"* The library does to each clip what training did: {chosen}."),
        "",
        "## Features",
        "",
        f"{segments} segments x {layout.num_joints} joints, {model.width} numbers each.",
        "",
        "| `pool` | numbers for a clip |",
        "| --- | ---: |",
        *(f"| {pool} | {width} |" for pool, width in feature_widths(content).items()),
        "",
        "## Scores",
        "",
        *_scores(content.results),
        "",
    ]
    return "\n".join(lines)


def _prose(text: str) -> list[str]:
    """Return lines of at most 100 columns; those after the first of a point are indented."""
    indent = "  " if text.startswith("* ") else ""
    return textwrap.wrap(text, 100, subsequent_indent=indent, break_on_hyphens=False)


def feature_widths(content: Content) -> dict[str, int]:
    """Return how many numbers each pooling gives for a clip of the model's own joints."""
    model, joints = content.config.model, content.layout.num_joints
    tokens = content.config.data.frames // model.segment_length * joints
    none = torch.empty(1, 1, tokens, model.width, device="meta")
    return {pool: pool_tokens(none, pool, joints).shape[1] for pool in get_args(Pool)}


def _scores(results: list[dict[str, Any]]) -> list[str]:
    if not results:
        return [_NO_SCORES]
    head = (
        "protocol",
        "recipe",
        "encoder",
        "pool",
        "data",
        "numbers",
        "train / test clips",
        "in",
        "scores, %",
    )
    rows = [
        (
            result.get("protocol"),
            result.get("recipe") or "",
            result.get("encoder"),
            result.get("pool") or "",
            f"{result.get('store')} {result.get('split')}",
            result.get("features"),
            f"{result.get('train_clips')} / {result.get('test_clips')}" + _seen(result),
            result.get("dtype"),
            _figures(result.get("figures")),
        )
        for result in results
    ]
    return [
        "`random` is the run's own initialisation, `raw` the coordinates themselves: a score means",
        "something beside these alone.",
        "",
        "| " + " | ".join(head) + " |",
        "| " + " | ".join("---" for _ in head) + " |",
        *("| " + " | ".join(_cell(value) for value in row) + " |" for row in rows),
    ]


def _seen(result: dict[str, Any]) -> str:
    seen = result.get("test_clips_seen_in_training")
    return f", {seen} of them seen in pre-training" if isinstance(seen, int) and seen else ""


def _figures(figures: object) -> str:
    if not isinstance(figures, dict):
        return ""
    kept = [(key, value) for key, value in figures.items() if isinstance(value, float)]
    return ", ".join(f"{key} {value:.1f}" for key, value in kept)


def _cell(value: object) -> str:
    """Return text that ends no cell, opens no tag and cannot be obeyed by a terminal."""
    return printable(value, 200).replace("|", "/").replace("<", "(").replace(">", ")")
