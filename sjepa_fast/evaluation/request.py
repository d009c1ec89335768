"""What `sjepa_fast.evaluate` can be asked, protocol by protocol, and the recipes behind it.

A recipe's defaults are the papers' values (method 6); `small_*` are our choice for sets of a few
hundred clips, taken for runs of the small-data presets (`eval.linear: logistic`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.evaluation.features import Pool
from sjepa_kernels.augment.settings import CropRanges, ViewRanges

Family = Literal["auto", "paper", "small"]
Encoder = Literal["target", "view", "random", "raw"]


@dataclass(frozen=True)
class EvalData:
    """Which clips to score on."""

    root: Path | None = None
    """Store; default: the one the run was trained on."""
    split: str | None = None
    """Split of the store; default: the run's."""
    bodies: int | None = None
    """Persons a clip; default: the run's."""
    eval_crop: float | None = None
    """Share of a test clip that is looked at; default: the run's (MAMP: 0.95)."""


@dataclass(frozen=True)
class Views(ViewRanges, CropRanges):
    """Random crops and rotations of training clips; the defaults are MAMP's (method 1.5)."""

    form: Literal["body", "axes"] = "axes"
    """axes: R = Rz Ry Rx about the origin; body: about the body's own axis, then tilted."""


@dataclass(frozen=True)
class LinearRecipe:
    """The linear probe (method 6.1)."""

    name: Family = "auto"
    """paper: SGD on BatchNorm and a linear layer; small: L2 logistic regression; auto: by run."""
    epochs: int = 100
    """Passes over the training clips (SGD)."""
    batch_size: int = 256
    """Clips a step (SGD)."""
    lr: tuple[float, ...] = (0.1,)
    """Peak learning rates, all trained in one pass; the first is the headline (SGD)."""
    c: float = 0.0
    """Inverse penalty of the logistic regression; 0: 0.1 for mean-pooled features, else 0.01."""
    views: Views = field(default_factory=Views)
    """Views of the training clips with --augment."""


@dataclass(frozen=True)
class FinetuneRecipe:
    """Fine-tuning of encoder and head (method 6.2)."""

    name: Family = "auto"
    """Where the defaults come from; auto: by run."""
    length: int = 100
    """Length of the training, in `unit`."""
    warmup: int = 5
    """Linear warm-up, in `unit`."""
    unit: Literal["epochs", "steps"] = "epochs"
    """What `length`, `warmup` and `score_every` count."""
    score_every: int = 1
    """How often the test part is scored, in `unit`; best_epoch is the best of these scores."""
    batch_size: int = 48
    """Clips a step; all, where there are fewer."""
    lr: float = 3e-4
    """Peak learning rate of the head."""
    lr_end: float = 1e-5
    """Learning rate of the head after the last step."""
    weight_decay: float = 0.05
    """On everything but biases and norms."""
    beta2: float = 0.999
    """Second moment decay of AdamW; the first is 0.9."""
    layer_decay: float = 0.8
    """Factor on the learning rate from a layer to the one below; 1 from scratch."""
    drop_path: float = 0.3
    """Probability of leaving out a branch of the last block; linear in depth from 0."""
    dropout: float = 0.3
    """Dropout on the tokens before the head."""
    hidden: int = 2048
    """Width of the head's hidden layer."""
    label_smoothing: float = 0.1
    """Share of the target that is spread over all classes."""
    clip_grad: float = 0.0
    """Largest gradient norm; 0 is off."""
    views: Views = field(default_factory=Views)
    """Views of the training clips."""


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
class KnnRequest(Request):
    """Cosine nearest neighbours on frozen features, exact (method 6.5)."""

    pool: Pool | None = None
    """Pooling of tokens; default: the run's online pooling."""
    k: tuple[int, ...] = (1, 2, 5, 10)
    """Neighbours; the first is the headline."""


@dataclass(frozen=True)
class RetrievalRequest(Request):
    """Action retrieval: test clips query the training clips; rank-1 and mean average precision."""

    pool: Pool | None = None
    """Pooling of tokens; default: the run's online pooling."""


@dataclass(frozen=True)
class LinearRequest(Request):
    """A linear classifier on frozen features (method 6.1)."""

    pool: Pool = "mean"
    """Pooling of tokens."""
    augment: bool = False
    """Compute training features anew each epoch, on random views, as the papers do."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the probe (SGD); mean and deviation are reported."""
    recipe: LinearRecipe = field(default_factory=LinearRecipe)


@dataclass(frozen=True)
class FinetuneRequest(Request):
    """Train encoder and head on labels (method 6.2); --encoder random is training from scratch."""

    seeds: tuple[int, ...] = (0,)
    """Seeds of head, order, views and dropout, and of a random encoder."""
    recipe: FinetuneRecipe = field(default_factory=FinetuneRecipe)
    save: bool = False
    """Keep the trained classifiers."""


@dataclass(frozen=True)
class SemiRequest(FinetuneRequest):
    """Fine-tune on a share of the labels, drawn once for each seed (method 6.3)."""

    ratio: float = 0.1
    """Share of the training clips whose labels are used: int(N * ratio) clips."""
    balanced: bool = False
    """Draw the same number of clips of every class, up to one."""


@dataclass(frozen=True)
class TransferRequest(FinetuneRequest):
    """Fine-tune on another store, also of another skeleton (method 6.4)."""


@dataclass(frozen=True)
class EnsembleRequest:
    """Average the class probabilities of results of several runs, such as streams."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders; the first one gets the result."""
    of: str = "finetune"
    """Beginning of the results' file name; it must fit one result of each run."""


def is_small(config: TrainConfig) -> bool:
    """Whether a run is of the small-data family."""
    return config.eval.linear == "logistic"


def training_views(config: TrainConfig, *, small: bool) -> Views:
    """Return the views of training clips; short clips keep the run's shortest crop.

    The small ones are those of the small S-JEPA preset, for all runs, so that objectives can be
    compared.
    """
    shortest = config.data.crop_min_frames
    if small:
        return Views(crop_min=0.6, crop_min_frames=shortest, form="body", rotation=1.2, tilt=0.2)
    return Views(crop_min_frames=shortest)


def linear_recipe(name: Family, config: TrainConfig) -> LinearRecipe:
    """Return the defaults of a recipe for a run."""
    if name == "small" or (name == "auto" and is_small(config)):
        return LinearRecipe(name="small", views=training_views(config, small=True))
    return LinearRecipe(name="paper", views=training_views(config, small=False))


def finetune_recipe(name: Family, config: TrainConfig, *, scratch: bool) -> FinetuneRecipe:
    """Return the defaults of a recipe for a run; `scratch` switches layer decay off.

    The small recipe was chosen on N-UCLA with camera 1 for training and camera 2 for validation.
    """
    if name == "small" or (name == "auto" and is_small(config)):
        return FinetuneRecipe(
            name="small",
            length=240,
            warmup=20,
            unit="steps",
            score_every=60,
            batch_size=64,
            lr=2e-3,
            layer_decay=1.0 if scratch else 0.8,
            drop_path=0.1,
            hidden=256,
            clip_grad=3.0,
            views=training_views(config, small=True),
        )
    return FinetuneRecipe(
        name="paper",
        layer_decay=1.0 if scratch else 0.8,
        views=training_views(config, small=False),
    )
