"""The configuration tree: frozen dataclasses with the S-JEPA paper's values as defaults.

A value that only some objectives read names them. Values that the papers do not state are marked
"our choice". Presets are in `presets.py`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from sjepa_fast.errors import InputError


def _flag(name: str) -> object:
    """Mark a field whose flag has no section in front, such as `--compile`.

    Only a command line reads the mark, so a machine without its library gets none.
    """
    try:
        from tyro.conf import arg
    except ImportError:
        return None
    return arg(name=name, prefix_name=False)


@dataclass(frozen=True)
class DataConfig:
    """Which clips, and how they become (bodies, frames, joints, 3) arrays."""

    root: Path | None = None
    """Folder of a prepared store."""
    synthetic: bool = False
    """Without a store, use the embedded synthetic data, which is made beside the run folder."""
    backend: Literal["resident", "stream", "dali"] = "resident"
    """resident: the whole store on the device; stream: batches of its rows, read ahead by worker
    processes, for stores that do not fit; dali: the same through NVIDIA DALI."""
    workers: int = 2
    """Processes of this process's own that read batches ahead (stream, dali); 0 reads in line."""
    prefetch: int = 4
    """Batches that each worker reads ahead."""
    split: str = "xsub"
    """Split of the store; pre-training sees its training part only."""
    frames: int = 120
    """T, frames of a clip as the networks see it."""
    sampling: Literal["resize", "index"] = "resize"
    """resize: a random crop, resized linearly; index: T frames of the whole clip by number, without
    interpolation (Skeleton2vec), where crop_min and crop_min_frames have no part."""
    bodies: int = 2
    """M, persons a clip; absent ones are zero bodies, as in the paper's pipeline."""
    skip_empty_bodies: bool = False
    """Train on single present bodies, `optim.batch_size` of them a step, instead of on clips."""
    crop_min: float = 0.5
    """Smallest share of a clip that a training crop keeps (the largest is 1)."""
    crop_min_frames: int = 64
    """Crops are at least this many frames where the clip has them."""
    eval_crop: float = 0.9
    """Share of the clip that the centred evaluation crop keeps."""
    center: bool = False
    """Subtract the first frame's root joint (NTU stores are centred when prepared)."""
    align_spine: bool = False
    """Turn each clip so that its first frame's spine is vertical and its shoulders point to x."""
    align_yaw: bool = False
    """Turn each clip about the vertical so that its first eighth faces the sensor."""
    normalize_size: bool = False
    """Divide each clip by its RMS joint distance from the root."""
    whiten: float = 0.0
    """Power of the PCA whitening of tubelets, fitted on training clips; 0 is off, 1 is full."""
    stream: Literal["joint", "bone", "motion", "bone_motion"] = "joint"
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
    """Masks drawn of each clip in a step; all share one pass of the target encoder (data2vec 2)."""


@dataclass(frozen=True)
class ViewConfig:
    """The geometric view; ranges are our choice for S-JEPA, whose paper gives none.

    S-JEPA shows the view to the view encoder alone. The others take it for the clip: masks and
    targets come from it too.
    """

    form: Literal["body", "axes"] = "body"
    """body: turn about the body's own vertical (S-JEPA); axes: about each coordinate axis through
    the origin (MAMP, Skeleton2vec)."""
    rotation: float = 0.3
    """Angle, or with form axes each of the three angles, U(-rotation, rotation) rad."""
    tilt: float = 0.0
    """body: angles about the two horizontal axes, U(-tilt, tilt) rad; off in paper presets."""
    translation: float = 0.1
    """Shift of each axis, U(-translation, translation) m."""
    flip: float = 0.5
    """Probability of a left-right mirror with joint swap."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is predicted at the masked tokens, by which loss, and what follows by EMA."""

    kind: Literal["sjepa", "skeleton2vec", "mamp", "skeletonmae"] = "sjepa"
    """sjepa: the target encoder's centred softmax; skeleton2vec: the mean of its layers; mamp:
    motion; skeletonmae: coordinates."""
    target_norm: Literal["none", "layernorm", "instance", "patch", "temporal"] = "none"
    """sjepa: none, or layernorm of the target features before centring. skeleton2vec: instance
    (the paper's), layernorm or none of each layer. mamp, skeletonmae: patch (the numbers of a
    token), temporal (each coordinate of a joint over the clip) or none."""
    temp_student: float = 0.1
    """sjepa: temperature of the prediction's softmax."""
    temp_target: float = 0.06
    """sjepa: temperature of the target's softmax."""
    center_momentum: float = 0.9
    """sjepa: EMA factor of the centre, which starts at 0; the old centre is used, then updated
    (our choice). 1 is no centring."""
    target_layers: int = 8
    """skeleton2vec: K, how many of the last blocks are averaged."""
    legacy_tube_layout: bool = False
    """skeleton2vec: misplace visible features as the authors' decoder does (method 4.2)."""
    ema_start: float = 0.9999
    """sjepa, skeleton2vec: momentum of the target encoder at the first step."""
    ema_end: float = 1.0
    """sjepa, skeleton2vec: momentum at the end of its schedule."""
    ema_schedule: Literal["cosine", "linear"] = "cosine"
    """sjepa, skeleton2vec: the way from ema_start to ema_end."""
    ema_length: int = 0
    """sjepa, skeleton2vec: length of that way in `optim.unit`; 0 is the whole run."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule."""

    batch_size: int = 256
    """Clips a step over all processes."""
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

    online_pool: Literal["mean", "joint", "full"] = "mean"
    """Pooling of the online kNN and of the before/after figures."""
    knn_scaling: Literal["none", "fitted"] = "none"
    """none: plain cosine (STARS protocol); fitted: centre, or standardise pooled features."""
    knn_clips: int = 4096
    """At most this many training clips in the online kNN and the before/after figures."""
    linear: Literal["sgd", "logistic"] = "sgd"
    """sgd: the paper's probe (method 6.1); logistic: L2 logistic regression for small sets."""


@dataclass(frozen=True)
class LogConfig:
    """What is written while training."""

    every: int = 20
    """Steps between log lines, the only host synchronisations."""
    panel_every: int = 200
    """Steps between collapse panels."""
    knn_every: int = 0
    """Steps between online kNN scores; 0 is off."""
    tensorboard: bool = True
    """Also write TensorBoard events."""
    profile: Annotated[bool, _flag("profile")] = False
    """Look at a few steps after warm-up; trace and summary go to the run's folder `profile`."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Saving of weights and training state."""

    every: int = 1000
    """Steps between checkpoints; one is always written at the end and on Ctrl-C."""
    keep: int = 2
    """How many of the newest checkpoints stay."""


@dataclass(frozen=True)
class RuntimeConfig:
    """Where and in which precision to compute."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:0."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute precision; weights, loss and EMA stay float32. auto asks the device."""
    compile: Annotated[bool, _flag("compile")] = False
    """Compile the blocks of the three networks."""
    cuda_graph: Annotated[Literal["auto", "on", "off"], _flag("cuda-graph")] = "auto"
    """Replay the whole step as one CUDA graph; auto: with one process on a GPU."""


@dataclass(frozen=True)
class TrainConfig:
    """A pre-training run."""

    run: Path = Path("runs/default")
    """Run folder: configuration, metrics, checkpoints, pictures, results."""
    seed: int = 0
    """Seed of initialisation, sampling, views and masks."""
    resume: Literal["never", "auto"] = "never"
    """auto continues from the newest checkpoint of the run folder, if there is one."""
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


# Target normalisations that an objective has.
TARGET_NORMS = {
    "sjepa": ("none", "layernorm"),
    "skeleton2vec": ("instance", "layernorm", "none"),
    "mamp": ("patch", "temporal", "none"),
    "skeletonmae": ("patch", "temporal", "none"),
}


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


def validate(config: TrainConfig) -> None:
    """Check everything that needs no data.

    Args:
        config: The resolved configuration.

    Raises:
        InputError: On the first value that cannot work, with the fix.
    """
    data, model, optim, mask = config.data, config.model, config.optim, config.mask
    for name, value in (
        ("data.frames", data.frames),
        ("data.bodies", data.bodies),
        ("model.segment_length", model.segment_length),
        ("model.width", model.width),
        ("model.depth", model.depth),
        ("model.heads", model.heads),
        ("model.predictor_depth", model.predictor_depth),
        ("optim.batch_size", optim.batch_size),
        ("optim.length", optim.length),
        ("data.crop_min_frames", data.crop_min_frames),
        ("data.prefetch", data.prefetch),
        ("eval.knn_clips", config.eval.knn_clips),
        ("log.every", config.log.every),
        ("log.panel_every", config.log.panel_every),
        ("checkpoint.every", config.checkpoint.every),
        ("checkpoint.keep", config.checkpoint.keep),
        ("objective.temp_student", config.objective.temp_student),
        ("objective.temp_target", config.objective.temp_target),
        ("objective.target_layers", config.objective.target_layers),
        ("mask.tau", mask.tau),
        ("mask.tube_length", mask.tube_length),
        ("mask.num_masked_views", mask.num_masked_views),
    ):
        if not (value > 0 and math.isfinite(value)):
            raise InputError(name, value, "give a positive number")
    for name, share in (
        ("data.crop_min", data.crop_min),
        ("data.eval_crop", data.eval_crop),
        ("mask.predict_ratio", mask.predict_ratio),
    ):
        if not 0 < share <= 1:
            raise InputError(name, share, "give a share above 0 and up to 1")
    for name, value, most in (
        ("seed", config.seed, 2.0**63 - 1024),
        ("data.workers", data.workers, math.inf),
        ("data.whiten", data.whiten, 1),
        ("view.rotation", config.view.rotation, math.inf),
        ("view.tilt", config.view.tilt, math.inf),
        ("view.translation", config.view.translation, math.inf),
        ("view.flip", config.view.flip, 1),
        ("mask.tube_scale", mask.tube_scale, math.inf),
        ("model.layer_scale", model.layer_scale, math.inf),
        ("objective.center_momentum", config.objective.center_momentum, 1),
        ("objective.ema_length", config.objective.ema_length, math.inf),
        ("optim.lr", optim.lr, math.inf),
        ("optim.lr_end", optim.lr_end, math.inf),
        ("optim.weight_decay", optim.weight_decay, math.inf),
        ("optim.beta1", optim.beta1, math.nextafter(1, 0)),
        ("optim.beta2", optim.beta2, math.nextafter(1, 0)),
        ("optim.clip_grad", optim.clip_grad, math.inf),
        ("log.knn_every", config.log.knn_every, math.inf),
    ):
        if not (0 <= value <= most and math.isfinite(value)):
            upper = "or more" if most == math.inf else f"to {most:.6g}"
            raise InputError(name, value, f"give a finite number, 0 {upper}")
    if data.frames < model.segment_length:
        raise InputError(
            "data.frames",
            f"{data.frames} is shorter than one segment of {model.segment_length} frames",
            "raise data.frames or lower model.segment_length",
        )
    if data.frames % model.segment_length:
        raise InputError(
            "model.segment_length",
            f"{model.segment_length} does not divide data.frames {data.frames}",
            "choose a divisor",
        )
    if model.width % model.heads:
        raise InputError(
            "model.heads", f"{model.heads} does not divide model.width {model.width}", "choose both"
        )
    if not 0 < mask.ratio < 1:
        raise InputError(
            "mask.ratio",
            f"{mask.ratio} leaves nothing visible or nothing masked",
            "give a ratio strictly between 0 and 1, such as 0.9",
        )
    _validate_objective(config)
    if not 0 <= config.objective.ema_start <= config.objective.ema_end <= 1:
        raise InputError(
            "objective.ema_start",
            f"{config.objective.ema_start} .. {config.objective.ema_end}",
            "keep 0 <= ema_start <= ema_end <= 1",
        )
    if not 0 <= optim.warmup < optim.length:
        raise InputError(
            "optim.warmup",
            f"{optim.warmup} of {optim.length} {optim.unit}",
            "make the warm-up shorter than the run",
        )


def _validate_objective(config: TrainConfig) -> None:
    """Check what must fit between the objective, its masks, its view and the networks."""
    objective, mask = config.objective, config.mask
    norms = TARGET_NORMS[objective.kind]
    if objective.target_norm not in norms:
        value = f"{objective.target_norm} with objective.kind {objective.kind}"
        raise InputError("objective.target_norm", value, f"choose one of {', '.join(norms)}")
    if objective.kind == "skeleton2vec" and objective.target_layers > config.model.depth:
        value = f"{objective.target_layers} of {config.model.depth} blocks"
        raise InputError("objective.target_layers", value, "average at most model.depth blocks")
    segments = config.data.frames // config.model.segment_length
    if mask.kind == "tube" and segments % mask.tube_length:
        value = f"{mask.tube_length} does not divide the {segments} segments"
        raise InputError("mask.tube_length", value, "choose a divisor")
    if objective.legacy_tube_layout and (objective.kind, mask.kind) != ("skeleton2vec", "tube"):
        fix = "it belongs to objective.kind skeleton2vec with mask.kind tube"
        raise InputError("objective.legacy_tube_layout", True, fix)
    if objective.legacy_tube_layout and (
        mask.predict_ratio < 1 or config.model.predictor != "joint"
    ):
        fix = "it needs model.predictor joint with mask.predict_ratio 1"
        raise InputError("objective.legacy_tube_layout", True, fix)
    if config.view.tilt and config.view.form == "axes":
        raise InputError("view.tilt", config.view.tilt, "use view.form body, or rotation alone")


def validate_tokens(config: TrainConfig, joints: int) -> None:
    """Check the mask count once the layout is known.

    Args:
        config: The resolved configuration.
        joints: V of the store's layout.

    Raises:
        InputError: If no token would stay visible, or none would be masked.
    """
    tokens = config.data.frames // config.model.segment_length * joints
    kept = kept_tokens(config.mask, tokens, joints)
    if not 0 < kept < tokens:
        raise InputError(
            "mask.ratio",
            f"{config.mask.ratio} of {tokens} tokens leaves {kept} visible",
            "choose a ratio that keeps at least one token and masks at least one",
        )


def nearest(name: str, known: list[str]) -> str:
    """Return a phrase that names the closest known names, or all of them."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"nearest: {', '.join(close)}" if close else f"known: {', '.join(known)}"


def replace(config: TrainConfig, **sections: dict[str, object]) -> TrainConfig:
    """Return a copy with some values of some sections changed (`data={"frames": 32}`)."""
    changed = {
        name: dataclasses.replace(getattr(config, name), **values)
        for name, values in sections.items()
    }
    return dataclasses.replace(config, **changed)
