"""Runs that the tests of reports share."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from sjepa_fast.data.store import Store
from sjepa_fast.data.store_writer import StoreWriter

SHORT = ("--optim.length=6", "--optim.unit=steps", "--log.panel-every=2", "--log.knn-every=3")
# Names that end elements, attributes and scripts, in a store of a stranger.
HOSTILE = (
    "</script><script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 1">',
    "<!--<script>",
    "a & b ' \\ ${data} $data",
)


def data_of(page: Path) -> dict[str, Any]:
    """The values inside a page."""
    found = re.findall(r'<script type="application/json" id="data">(.*)</script>', page.read_text())
    assert len(found) == 1
    data: dict[str, Any] = json.loads(found[0])
    return data


def hostile_store(source: Store, out: Path, classes: tuple[str, ...] = HOSTILE) -> Store:
    """Some clips of a store under names that are markup; the last two have no label."""
    with StoreWriter(out, HOSTILE[1], source.layout, classes) as writer:
        for i in range(24):
            label = i % 4 if classes and i < 22 else None
            writer.add(f"{HOSTILE[i % 4]}{i}", source.clip(i), label, {})
        return writer.finish({"random": np.repeat([1, 2], 12).astype(np.int8)})
