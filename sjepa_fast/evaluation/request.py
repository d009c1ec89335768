# SPDX-License-Identifier: Apache-2.0
"""Options that all protocols of `sjepa_fast.evaluate` share; further ones are in their files."""

from __future__ import annotations

import abc
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Self

import tyro

from sjepa_fast.config.schema import Pool, Scaling, Switch, TrainConfig
from sjepa_fast.config.validation import validate_pool
from sjepa_fast.evaluation.recipes import FinetuneRecipe, LinearRecipe
from sjepa_fast.run_folder import read_run

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
    cuda_graph: Annotated[Switch, tyro.conf.arg(name="cuda-graph", prefix_name=False)] = "auto"
    """Replay a fine-tuning step as one CUDA graph; auto: on a GPU."""


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
class RecipeRequest(Request, abc.ABC):
    """A request of a protocol that trains; it has a field `recipe`."""

    def configuration(self) -> TrainConfig:
        """Return the run's configuration, for which the recipe is chosen."""
        return read_run(self.run)

    @abc.abstractmethod
    def default_recipe(self, config: TrainConfig) -> LinearRecipe | FinetuneRecipe:
        """Return the recipe to start from, for a run's configuration; flags change it."""


@dataclass(frozen=True)
class ProbeRequest(Request, abc.ABC):
    """A request of a protocol that scores frozen features."""

    baselines: bool = True
    """Also score raw coordinates and the run's own initialisation by the same probe, where the
    run's results do not have them yet."""
    checkpoints: Literal["last", "all"] = "last"
    """last: the newest one; all: score every saved one, and take the best on validation clips."""

    @abc.abstractmethod
    def settled(self, config: TrainConfig) -> Self:
        """Return the request with the run's values where it has none; raises InputError."""

    @abc.abstractmethod
    def result_name(self) -> str:
        """Name the result of a settled request."""

    def untrained(self, encoder: Literal["raw", "random"]) -> Self:
        """Return the request that scores an encoder without training by the same probe."""
        return dataclasses.replace(self, encoder=encoder, baselines=False, checkpoints="last")


def frozen_name(protocol: str, encoder: Encoder, pool: Pool) -> str:
    """Name a frozen protocol's result; raw coordinates have no pooling."""
    return f"{protocol}-raw" if encoder == "raw" else f"{protocol}-{encoder}-{pool}"


@dataclass(frozen=True)
class CosineRequest(ProbeRequest):
    """A request of a protocol that ranks by the cosine of features."""

    pool: Pool | None = None
    """Pooling of tokens; default: the run's online pooling."""
    scaling: Scaling | None = None
    """Scaling of features; default: the run's eval.knn_scaling."""

    def settled(self, config: TrainConfig) -> Self:
        """Return the request with the run's pooling and scaling where it has none."""
        pool = self.pool or config.eval.online_pool
        validate_pool("pool", pool, config)
        scaling = self.scaling or config.eval.knn_scaling
        return dataclasses.replace(self, pool=pool, scaling=scaling)

    def named(self, protocol: str) -> str:
        """Name the result of a settled request: protocol, encoder, pooling, and pca."""
        assert self.pool is not None, "the request is settled"
        name = frozen_name(protocol, self.encoder, self.pool)
        return f"{name}-pca" if self.scaling == "pca" else name
