# SPDX-License-Identifier: Apache-2.0
"""The configuration tree: frozen dataclasses with the S-JEPA paper's values as defaults.

A value that only some objectives read names them. Values that the papers do not state are marked
"our choice". Presets are in `presets.py`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from sjepa_kernels.augment.settings import CropRanges, ViewRanges
from sjepa_kernels.tubelets import Stream

Switch = Literal["auto", "on", "off"]
Pool = Literal["mean", "joint", "pyramid", "full"]
Scaling = Literal["none", "fitted", "pca"]
# The split of a pool of stores that is the union of its sets' own.
POOLED = "train"


def _flag(name: str) -> object:
    """Mark a field whose flag has no section in front, such as `--compile`.

    Only the command line reads the mark; without its library (tyro) there is none.
    """
    try:
        from tyro.conf import arg
    except ImportError:
        return None
    return arg(name=name, prefix_name=False)


@dataclass(frozen=True)
class DataConfig(CropRanges):
    """Which clips, and how they become (bodies, frames, joints, 3) arrays."""

    root: Path | None = None
    """Folder of a prepared store."""
    synthetic: bool = False
    """Without a store, use the embedded synthetic data, which is made beside the run folder."""
    backend: Literal["resident", "disk", "dali"] = "resident"
    """resident: the whole store on the device; disk: batches of its rows, read ahead by worker
    processes, for stores that do not fit; dali: the same through NVIDIA DALI."""
    workers: int = 2
    """Worker processes per training process that read batches ahead (disk, dali); 0: none."""
    prefetch: int = 4
    """Batches that each worker reads ahead."""
    split: str = "xsub"
    """Split of the store; pre-training sees its training part only."""
    set_power: float = 1.0
    """Of a pool of stores: a set of n samples is drawn with a probability that goes by n^set_power.
    1: every sample once in an epoch; 0: all sets alike; the inverse of a sampling temperature."""
    frames: int = 120
    """T, frames of a clip as the networks see it."""
    sampling: Literal["resize", "index"] = "resize"
    """resize: a random crop, resized linearly; index: T frames of the whole clip by number, without
    interpolation (Skeleton2vec); crop_min and crop_min_frames are then not used."""
    bodies: int = 2
    """M, persons per clip; absent ones are zero bodies, as in the paper's pipeline."""
    skip_empty_bodies: bool = False
    """Train on single present bodies, `optim.batch_size` of them per step, instead of on clips."""
    eval_crop: float = 0.9
    """Share of the clip that the centered evaluation crop keeps."""
    center: bool = False
    """Subtract the first frame's root joint (NTU stores are centered when prepared)."""
    align_spine: bool = False
    """Turn each clip so that its first frame's spine is vertical and its shoulders point to x."""
    align_yaw: bool = False
    """Turn each clip about the vertical so that its first eighth faces the sensor."""
    normalize_size: bool = False
    """Divide each clip by its RMS joint distance from the root."""
    whiten: float = 0.0
    """Power of the PCA whitening of tubelets, fitted on training clips; 0 is off, 1 is full."""
    stream: Stream = "joint"
    """What tokens hold: joints, bones, or the motion of either; masks follow the same tokens."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the view encoder, the target encoder and the predictor."""

    segment_length: int = 4
    """l, frames in a tubelet."""
    width: int = 256
    """D."""
    depth: int = 8
    """Encoder blocks."""
    heads: int = 8
    """Attention heads."""
    predictor_depth: int = 5
    """Predictor blocks."""
    predictor: Literal["joint", "cross"] = "joint"
    """joint: self-attention over visible and mask tokens (all four papers); cross: mask tokens
    attend to the visible ones alone, which is cheaper (our choice of layout)."""
    layer_scale: float = 0.0
    """First value of the learned factors on residual branches; 0 is none (Skeleton2vec 1e-4)."""
    projector_hidden: int = 256
    """With a regularizer: width of the projector's hidden layer (our choice)."""
    projector_width: int = 64
    """With a regularizer: numbers of a clip that it sees, after the projector (our choice)."""


@dataclass(frozen=True)
class MaskConfig:
    """Which tokens are hidden from the view encoder."""

    kind: Literal["motion_aware", "random", "tube"] = "motion_aware"
    """Motion-aware Gumbel masking, uniform, or Skeleton2vec's motion-aware tubes."""
    ratio: float = 0.9
    """Share of tokens masked; for tubes, of the joints of each."""
    tau: float = 0.8
    """motion_aware: temperature (0.75 for NTU-120)."""
    tube_length: int = 5
    """tube: segments that share their visible joints; divides the clip's segments."""
    tube_scale: float = 0.1
    """tube: weight of motion (0.2 for NTU-120); 0 leaves tubes of uniform joints."""
    mamp_count: bool = False
    """Keep int(N (1 - ratio)) tokens, 74 of 750, as the official codes' floating point does; else
    75. For tubes N are the joints."""
    predict_ratio: float = 1.0
    """Share of the masked tokens that are predicted, drawn anew in each step without regard to
    motion; the others are left out of predictor and loss."""
    num_masked_views: int = 1
    """Masks drawn per clip and step; all share one pass of the target encoder (data2vec 2)."""


@dataclass(frozen=True)
class ViewConfig(ViewRanges):
    """The geometric view; ranges are our choice for S-JEPA, whose paper gives none.

    In S-JEPA only the view encoder sees the view. In the other objectives masks and targets come
    from the view too; multiview has several views, each of a crop of its own.
    """

    translation: float = 0.1
    """Shift of each axis, U(-translation, translation) m."""
    flip: float = 0.5
    """Probability of a left-right mirror with joint swap."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is predicted at the masked tokens, by which loss, and what follows by EMA."""

    kind: Literal["sjepa", "skeleton2vec", "mamp", "skeletonmae", "multiview"] = "sjepa"
    """sjepa: the target encoder's centered softmax; skeleton2vec: the mean of its layers; mamp:
    motion; skeletonmae: coordinates; multiview: nothing, views of a clip agree."""
    target_norm: Literal["none", "layernorm", "instance", "patch", "temporal"] = "none"
    """sjepa: none, or layernorm of the target features before centring. skeleton2vec: instance
    (the paper's), layernorm or none of each layer. mamp, skeletonmae: patch (the numbers of a
    token), temporal (each coordinate of a joint over the clip) or none."""
    temp_student: float = 0.1
    """sjepa: temperature of the prediction's softmax."""
    temp_target: float = 0.06
    """sjepa: temperature of the target's softmax."""
    center_momentum: float = 0.9
    """sjepa: EMA factor of the center, which starts at 0; the old center is used, then updated
    (our choice). 1 is no centring."""
    target_stream: Literal["float32", "compute"] = "float32"
    """sjepa, skeleton2vec: precision of the target encoder's residual stream; compute: that of
    `runtime.dtype`, which moves fewer bytes and rounds the targets (our choice)."""
    target_every: int = 1
    """sjepa, skeleton2vec: steps in turn on one batch, with one pass of the target encoder: crop,
    view and targets stay, each step draws other masks (our choice); 1 is the papers'."""
    target_layers: int = 8
    """skeleton2vec: K, how many of the last blocks are averaged."""
    legacy_tube_layout: bool = False
    """skeleton2vec: place visible features as the authors' decoder does, wrongly (method 4.2)."""
    ema_start: float = 0.9999
    """sjepa, skeleton2vec: momentum of the target encoder at the first step."""
    ema_end: float = 1.0
    """sjepa, skeleton2vec: momentum at the end of its schedule."""
    ema_schedule: Literal["cosine", "linear"] = "cosine"
    """sjepa, skeleton2vec: shape of the schedule from ema_start to ema_end."""
    ema_length: int = 0
    """sjepa, skeleton2vec: length of that schedule in `optim.unit`; 0 is the whole run."""
    views: int = 2
    """multiview: V, crops and views of a clip in a step, each with a mask of its own."""
    regularizer: Literal["none", "sigreg", "visreg", "vicreg"] = "none"
    """Keeps the batch's clips apart: a distance of their features from a standard normal (sigreg,
    visreg), or from varying without correlation (vicreg). A clip's feature is the mean of the view
    encoder's over visible tokens and present bodies, through the projector."""
    regularizer_weight: float = 0.05
    """Its weight: lambda in (1 - lambda) inv + lambda regularizer of multiview; elsewhere it is
    added, times this, to the objective's own loss."""
    directions: int = 256
    """sigreg, visreg: directions that a step draws."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule."""

    batch_size: int = 256
    """Clips per step over all processes."""
    accumulate: int = 1
    """Parts in which the batch goes through the networks, one after the other: the same update
    within rounding, with the memory of one part."""
    length: int = 1200
    """Length of the run, in `unit`."""
    warmup: int = 20
    """Linear warm-up, in `unit`."""
    unit: Literal["epochs", "steps"] = "epochs"
    """What `length` and `warmup` count."""
    lr: float = 1e-3
    """Peak learning rate (absolute, not rescaled with the batch)."""
    lr_end: float = 5e-4
    """Learning rate after the last step."""
    weight_decay: float = 0.05
    """On everything but biases, norms and layer scales."""
    decay_positions: bool = True
    """Whether position tables are decayed too (Skeleton2vec: no)."""
    beta1: float = 0.9
    """First moment decay."""
    beta2: float = 0.95
    """Second moment decay."""
    clip_grad: float = 0.0
    """Largest gradient norm; 0 is off (our choice after MAMP)."""


@dataclass(frozen=True)
class EvalConfig:
    """How features are pooled and scored, online and after the run."""

    online_pool: Pool = "mean"
    """Pooling of the online kNN and of the before/after figures. mean: over joints and time; joint:
    over time; pyramid: of each joint over all the time, its halves and its quarters; full: none."""
    knn_scaling: Scaling = "none"
    """none: plain cosine (STARS protocol); fitted: center, or standardise pooled features; pca:
    principal axes of the training part, each divided by the root of its deviation (half-whitened).
    """
    knn_clips: int = 4096
    """At most this many training clips in the online kNN and the before/after figures."""
    recipe: Literal["paper", "small"] = "paper"
    """Which recipes `evaluate` trains by: the papers' (methods 6.1 and 6.2), or ours for small
    sets."""


@dataclass(frozen=True)
class LogConfig:
    """What is written while training."""

    every: int = 20
    """Steps between log lines, the only host synchronisations."""
    panel_every: int = 200
    """Steps between collapse panels."""
    knn_every: int = 0
    """Steps between online kNN scores; 0 is off."""
    to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Also write the rows of metrics.jsonl to these boards (extra log)."""
    profile: Annotated[bool, _flag("profile")] = False
    """Profile a few steps after warm-up; trace and summary go to the run's folder `profile`."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Saving of weights and training state."""

    every: int = 1000
    """Steps between checkpoints; one is always written at the end and when a signal stops it."""
    keep: int = 2
    """How many of the newest checkpoints stay."""


@dataclass(frozen=True)
class RuntimeConfig:
    """Where and in which precision to compute."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:0."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute precision; weights, loss and EMA stay float32. auto: bfloat16 where the device has
    it; a CPU that has it tries both on a block and takes the faster, once for a run."""
    compile: Annotated[Switch, _flag("compile")] = "auto"
    """Compile the blocks of the three networks; auto: on a GPU, those that gain by it. `--compile`
    alone is on."""
    cuda_graph: Annotated[Switch, _flag("cuda-graph")] = "auto"
    """Replay the whole step as one CUDA graph; auto: with one process on a GPU. With several it is
    untested, and they do it only if it is on."""
    attention: Literal["auto", "triton", "flash", "cudnn", "efficient"] = "auto"
    """Attention of a GPU's training step, forward and backward: our kernel (triton), or one of
    PyTorch's; auto: the fastest measured on the card, without a measurement PyTorch's choice."""
    recompute: Switch = "auto"
    """Make the MLPs' activations again in the backward instead of keeping them: a fifth less of a
    GPU's memory, 3 % more bytes moved; auto: where a step would take more than a tenth of it. In
    bfloat16 up to a width of 256 they are never kept."""
    max_skipped: int = 10
    """Stop the run, saved and with a diagnosis, once so many steps in a row had a loss or gradient
    that is not finite and were skipped (our choice)."""
    verify: Annotated[str, _flag("verify")] = "resume"
    """Do steps twice from the same state and stop if a bit differs, which a failing device betrays
    itself by. resume: the first step after a resume; first: of every start; every: all; a number
    N: the first and every N-th after it; off: none."""


@dataclass(frozen=True)
class TrainConfig:
    """A pre-training run."""

    run: Path = Path("runs/default")
    """Run folder: configuration, metrics, checkpoints, pictures, results."""
    seed: int = 0
    """Seed of initialisation, sampling, views and masks."""
    resume: Literal["never", "auto"] = "never"
    """auto continues from the newest whole checkpoint of the run folder, if there is one."""
    continue_from: str = ""
    """Model whose weights view and target encoder begin with: run folder, saved model, owner/name
    on the Hugging Face Hub, or tiny. Its sizes and normalisation are taken over, at a tenth of the
    rate; predictor, center and optimiser start anew."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    view: ViewConfig = field(default_factory=ViewConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


def kept_joints(mask: MaskConfig, joints: int) -> int:
    """Return how many of V joints a tube leaves visible: the whole part of V (1 - r), 2 of 25.

    With `mask.mamp_count`, int(V (1 - r)) as floating point gives it: 4 of 25 at ratio 0.8, not 5.
    """
    return int(joints * (1 - mask.ratio) + (0 if mask.mamp_count else 1e-9))


def kept_tokens(mask: MaskConfig, tokens: int, joints: int) -> int:
    """Return K, how many of N = S*V tokens stay visible.

    N - int(N r), or MAMP's int(N (1 - r)); for tubes, `kept_joints` of each segment.
    """
    if mask.kind == "tube":
        return tokens // joints * kept_joints(mask, joints)
    if mask.mamp_count:
        return int(tokens * (1 - mask.ratio))
    return tokens - int(tokens * mask.ratio)


def predicted_tokens(mask: MaskConfig, masked: int) -> int:
    """Return how many of the masked tokens are predicted, at least one."""
    return max(1, round(masked * mask.predict_ratio))


def replace(config: TrainConfig, **sections: dict[str, object]) -> TrainConfig:
    """Return a copy with some values of some sections changed (`data={"frames": 32}`)."""
    changed = {
        name: dataclasses.replace(getattr(config, name), **values)
        for name, values in sections.items()
    }
    return dataclasses.replace(config, **changed)
