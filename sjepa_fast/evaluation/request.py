"""Options that all protocols of `sjepa_fast.evaluate` share; further ones are in their files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sjepa_fast.config.schema import Switch, TrainConfig
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
    """Device and precision of the evaluation."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:0."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute precision; auto: bfloat16 on a GPU that has it, the run's own on a CPU."""
    compile: Annotated[Switch, tyro.conf.arg(name="compile", prefix_name=False)] = "off"
    """Compile the encoder's blocks; auto: on a GPU. `--compile` alone is on."""


@dataclass(frozen=True)
class Request:
    """Options of every protocol that scores one run."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder."""
    data: EvalData = field(default_factory=EvalData)
    encoder: Encoder = "target"
    """target: the EMA encoder, or the view encoder where there is none; view; random: the
    run's own initialisation; raw: no encoder, the coordinates themselves (frozen protocols)."""
    runtime: EvalRuntime = field(default_factory=EvalRuntime)


@dataclass(frozen=True)
class RecipeRequest(Request):
    """A request of a protocol that trains; it has a field `recipe`."""

    def default_recipe(self, config: TrainConfig) -> LinearRecipe | FinetuneRecipe:
        """Return the recipe to start from, for a run's configuration; flags change it."""
        raise NotImplementedError
