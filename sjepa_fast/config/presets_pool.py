# SPDX-License-Identifier: Apache-2.0
"""Recipes for a pool of small sets (`prepare merge`); all of it our choice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sjepa_fast.config import schema
from sjepa_fast.config.presets_small import small

METHODS = ("sjepa", "mamp")


def pool(method: str) -> schema.TrainConfig:
    """An objective (`method`) on a pool: the recipe of N-UCLA, wider and for longer.

    A set of n clips counts by the root of n, and residual branches begin at a tenth. Width, length
    and whitening are those of S-JEPA that were best on the sets' splits `val` (benchmarks/LOG.md):
    three times the steps of the narrow encoder help N-UCLA and hurt MSR Action3D, and a stronger
    whitening magnifies the noise of old sensors.
    """
    config = schema.replace(
        small(method, "nucla"),
        data={"split": schema.POOLED, "set_power": 0.5, "bodies": 2, "whiten": 0.25},
        model={"layer_scale": 0.1, "width": 128, "heads": 4},
        optim={"length": 3600, "warmup": 100},
        log={"knn_every": 1000},
    )
    return replace(config, run=Path(f"runs/{method}-pool"))
