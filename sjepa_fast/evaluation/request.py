"""What every request to `sjepa_fast.evaluate` holds; each protocol's own is in its file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.evaluation.recipes import FinetuneRecipe, LinearRecipe

Encoder = Literal["target", "view", "random", "raw"]


@dataclass(frozen=True)
class EvalData:
    """Which clips to score on."""

    root: Path | None = None
    """Store; default: the one the run was trained on."""
    split: str | None = None
    """Split of the store; default: the run's."""
    bodies: int | None = None
    """Persons per clip; default: the run's."""
    eval_crop: float | None = None
    """Share of a test clip that is scored; default: the run's (MAMP: 0.95)."""


@dataclass(frozen=True)
class EvalRuntime:
    """Where and in which precision to compute, whatever the run did."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:0."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute precision; auto asks the device."""
    compile: Annotated[bool, tyro.conf.arg(name="compile", prefix_name=False)] = False
    """Compile the encoder's blocks."""


@dataclass(frozen=True)
class Request:
    """What every protocol of one run needs."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder."""
    data: EvalData = field(default_factory=EvalData)
    encoder: Encoder = "target"
    """target: the EMA encoder, or the view encoder where there is no other; view; random: the
    run's own initialisation; raw: no encoder, the coordinates themselves (frozen protocols)."""
    runtime: EvalRuntime = field(default_factory=EvalRuntime)


@dataclass(frozen=True)
class RecipeRequest(Request):
    """A request of a protocol that trains; it has a field `recipe`."""

    def default_recipe(self, config: TrainConfig) -> LinearRecipe | FinetuneRecipe:
        """Return the recipe that holds where no flag changes it, for a run's configuration."""
        raise NotImplementedError
