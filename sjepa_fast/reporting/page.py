# SPDX-License-Identifier: Apache-2.0
"""Puts values into the page: one HTML file with its scripts, styles and data inside.

Names in the data come from strangers. They reach the page as JSON in which no `<` is left, and its
scripts put them in as text alone. The page's policy admits these very scripts, by their digests,
and forbids the network.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

LARGEST = 1_500_000  # bytes
# In the order in which they use each other.
SCRIPTS = (
    "three.bundle.js",
    "elements.js",
    "colors.js",
    "curves.js",
    "matrix.js",
    "clip.js",
    "stage.js",
    "map.js",
    "tokens.js",
    "tables.js",
    "main.js",
)


@cache
def _file(name: str) -> str:
    return (files("sjepa_fast.reporting") / "page" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def as_json(data: object) -> str:
    """Return JSON that can stand in an HTML element: ASCII, and nothing that HTML would read."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def page(data: dict[str, Any]) -> str:
    """Return the page that shows the data (`sjepa_fast/reporting/write.py` says which)."""
    style, scripts = _file("style.css"), [_file(name) for name in SCRIPTS]
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"style-src {_digest(style)}; script-src {' '.join(map(_digest, scripts))}"
    )
    return Template(_file("page.html")).substitute(
        policy=policy,
        style=style,
        data=as_json(data),
        scripts="\n".join(f"<script>{text}</script>" for text in scripts),
    )


@cache
def empty_bytes() -> int:
    """Return the size of the page without data."""
    return len(page({}).encode())
