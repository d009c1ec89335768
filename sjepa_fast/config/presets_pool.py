# SPDX-License-Identifier: Apache-2.0
"""Recipes for a pool of small sets (`prepare merge`); all of it our choice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sjepa_fast.config import schema
from sjepa_fast.config.presets_small import small

METHODS = ("sjepa", "mamp")


def pool(method: str) -> schema.TrainConfig:
    """An objective (`method`) on a pool: the recipe of N-UCLA, for longer.

    A set of n clips counts by the root of n. Residual branches begin at a tenth, and tokens are
    half-whitened, as full strength magnifies the noise of MSR Action3D. Nothing of it is tuned.
    """
    config = schema.replace(
        small(method, "nucla"),
        data={"split": schema.POOLED, "set_power": 0.5, "bodies": 2, "whiten": 0.5},
        model={"layer_scale": 0.1},
        optim={"length": 6000, "warmup": 100},
        log={"knn_every": 1000},
    )
    return replace(config, run=Path(f"runs/{method}-pool"))
