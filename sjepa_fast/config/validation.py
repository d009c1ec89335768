# SPDX-License-Identifier: Apache-2.0
"""Checks of a configuration before anything is built."""

from __future__ import annotations

import math
import re
from operator import attrgetter

from sjepa_fast.config.schema import Pool, TrainConfig, kept_tokens
from sjepa_fast.config.traits import TRAITS
from sjepa_fast.errors import InputError

_POSITIVE = (
    "data.frames data.bodies model.segment_length model.width model.depth model.heads "
    "model.predictor_depth optim.batch_size optim.length data.crop_min_frames data.prefetch "
    "eval.knn_clips log.every log.panel_every checkpoint.every checkpoint.keep "
    "objective.temp_student objective.temp_target objective.target_layers "
    "objective.target_every objective.views objective.directions optim.accumulate "
    "runtime.max_skipped model.projector_hidden model.projector_width "
    "mask.tau mask.tube_length mask.num_masked_views"
)
_SHARES = ("data.crop_min", "data.eval_crop", "mask.predict_ratio")
# Numbers from 0 on, and the largest values of those that have one.
_FROM_ZERO = (
    "seed data.workers data.set_power data.whiten data.time_warp view.rotation view.tilt "
    "view.translation view.scale view.shear view.flip view.joint_drop mask.tube_scale "
    "model.layer_scale objective.center_momentum objective.ema_length "
    "objective.regularizer_weight "
    "optim.lr optim.lr_end optim.weight_decay optim.beta1 optim.beta2 optim.clip_grad log.knn_every"
)
VERIFY = ("resume", "first", "every", "off")
_MOST: dict[str, float] = {
    "seed": 2.0**63 - 1024,
    "data.time_warp": 0.5,
    "data.set_power": 1,
    **dict.fromkeys(("data.whiten", "view.scale", "view.flip", "objective.center_momentum"), 1),
    "view.joint_drop": 1,
    **dict.fromkeys(("optim.beta1", "optim.beta2"), math.nextafter(1, 0)),
}

# The largest sizes, far above any use: a file from elsewhere must not ask for what no machine has.
# What a machine lacks for sizes below them is said before networks are built (`build.py`).
LARGEST = {
    **dict.fromkeys(("data.frames", "model.segment_length"), 2**14),
    "data.bodies": 100,
    "data.workers": 1024,
    "data.prefetch": 1024,
    "model.width": 2**14,
    **dict.fromkeys(("model.depth", "model.predictor_depth"), 256),
    # No wider than the kernels of the regularizers take.
    **dict.fromkeys(("model.projector_hidden", "model.projector_width"), 4096),
    "objective.views": 64,
    "objective.directions": 2**16,
    "optim.batch_size": 2**20,
    "optim.length": 10**7,
    "mask.num_masked_views": 1024,
}


def _finite(value: float) -> bool:
    # No float is as large as a whole number may be.
    return abs(value) < 2**63 if isinstance(value, int) else math.isfinite(value)


def validate(config: TrainConfig) -> None:
    """Check everything in a resolved configuration that needs no data.

    Raises InputError on the first value that cannot work, with the fix.
    """
    data, model, optim, mask = config.data, config.model, config.optim, config.mask
    for name, largest in LARGEST.items():
        size = attrgetter(name)(config)
        if size > largest:
            raise InputError(name, size, f"give at most {largest}")
    for name in _POSITIVE.split():
        value = attrgetter(name)(config)
        if not (value > 0 and _finite(value)):
            raise InputError(name, value, "give a positive number")
    for name in _SHARES:
        value = attrgetter(name)(config)
        if not 0 < value <= 1:
            raise InputError(name, value, "give a share above 0 and up to 1")
    for name in _FROM_ZERO.split():
        value, most = attrgetter(name)(config), _MOST.get(name, math.inf)
        if not (0 <= value <= most and _finite(value)):
            upper = "or more" if most == math.inf else f"to {most:.6g}"
            raise InputError(name, value, f"give a finite number, 0 {upper}")
    verify = config.runtime.verify
    if verify not in VERIFY and re.fullmatch(r"0*[1-9][0-9]{,17}", verify) is None:
        fix = f"use {', '.join(VERIFY)} (in quotes in YAML) or a number of steps from 1 on"
        raise InputError("runtime.verify", verify, fix)
    if data.frames < model.segment_length:
        value = f"{data.frames} is shorter than one segment of {model.segment_length} frames"
        raise InputError("data.frames", value, "raise data.frames or lower model.segment_length")
    if data.frames % model.segment_length:
        value = f"{model.segment_length} does not divide data.frames {data.frames}"
        raise InputError("model.segment_length", value, "choose a divisor")
    if model.width % model.heads:
        value = f"{model.heads} does not divide model.width {model.width}"
        raise InputError("model.heads", value, "choose both")
    if optim.batch_size % optim.accumulate:
        value = f"{optim.accumulate} does not divide optim.batch_size {optim.batch_size}"
        raise InputError("optim.accumulate", value, "choose a divisor")
    if config.log.profile and optim.accumulate > 1:
        value = f"with optim.accumulate {optim.accumulate}"
        raise InputError("profile", value, "a profile is of a batch in one part; use accumulate 1")
    head = model.width // model.heads
    if config.runtime.attention == "triton" and head not in (16, 32):
        value = f"triton with heads of {head}"
        raise InputError("runtime.attention", value, "it takes heads of 16 or 32; leave it auto")
    if not 0 < mask.ratio < 1:
        value = f"{mask.ratio} leaves nothing visible or nothing masked"
        fix = "give a ratio strictly between 0 and 1, such as 0.9"
        raise InputError("mask.ratio", value, fix)
    _validate_objective(config)
    validate_pool("eval.online_pool", config.eval.online_pool, config)
    start, end = config.objective.ema_start, config.objective.ema_end
    if not 0 <= start <= end <= 1:
        fix = "keep 0 <= ema_start <= ema_end <= 1"
        raise InputError("objective.ema_start", f"{start} .. {end}", fix)
    if not 0 <= optim.warmup < optim.length:
        value = f"{optim.warmup} of {optim.length} {optim.unit}"
        fix = f"make the warm-up shorter than the run: --optim.warmup {max(optim.length // 12, 0)}"
        raise InputError("optim.warmup", value, fix)


def validate_pool(argument: str, pool: Pool, config: TrainConfig) -> None:
    """Check that a clip has as many segments as the pooling cuts it into; raises InputError."""
    segments = config.data.frames // config.model.segment_length
    if pool == "pyramid" and segments < 4:
        value = f"pyramid of {segments} segments"
        raise InputError(argument, value, "its quarters need 4 or more; use joint")


def _validate_objective(config: TrainConfig) -> None:
    """Check that the objective, its masks, its view and the networks fit together."""
    objective, mask = config.objective, config.mask
    norms = TRAITS[objective.kind].target_norms
    if objective.target_norm not in norms:
        value = f"{objective.target_norm} with objective.kind {objective.kind}"
        raise InputError("objective.target_norm", value, f"choose one of {', '.join(norms)}")
    if objective.kind == "skeleton2vec" and objective.target_layers > config.model.depth:
        value = f"{objective.target_layers} of {config.model.depth} blocks"
        raise InputError("objective.target_layers", value, "average at most model.depth blocks")
    _validate_target_every(config)
    _validate_regularizer(config)
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
    if config.data.time_warp and config.data.sampling == "index":
        raise InputError("data.time_warp", config.data.time_warp, "use data.sampling resize")
    if config.view.tilt and config.view.form != "body":
        raise InputError("view.tilt", config.view.tilt, "use view.form body, or rotation alone")


def _validate_target_every(config: TrainConfig) -> None:
    """Check that nothing is due between the steps that share a batch's targets."""
    every = config.objective.target_every
    if every == 1:
        return
    if not TRAITS[config.objective.kind].target_encoder:
        value = f"{every} with objective.kind {config.objective.kind}"
        raise InputError("objective.target_every", value, "it has no target encoder; leave it 1")
    if config.log.profile:
        value = f"with objective.target_every {every}"
        raise InputError("profile", value, "a profile is of single steps; use target_every 1")
    for name in ("log.every", "log.panel_every", "log.knn_every", "checkpoint.every"):
        steps = attrgetter(name)(config)
        if steps % every:
            value = f"{steps} is no multiple of objective.target_every {every}"
            raise InputError(name, value, "choose a multiple")


def _validate_regularizer(config: TrainConfig) -> None:
    """Check what compares the clips of a batch, and the objective that has nothing else."""
    objective = config.objective
    if TRAITS[objective.kind].several_crops:
        if objective.views < 2:
            fix = "views of a clip are compared; give 2 or more"
            raise InputError("objective.views", objective.views, fix)
        if objective.regularizer == "none":
            fix = f"objective.kind {objective.kind} collapses without; use sigreg, visreg or vicreg"
            raise InputError("objective.regularizer", "none", fix)
        if objective.regularizer_weight > 1:
            fix = "it is the share of the loss; give 0 to 1"
            raise InputError("objective.regularizer_weight", objective.regularizer_weight, fix)
        fix = f"objective.kind {objective.kind} predicts nothing; leave it"
        usual: dict[str, object] = {"mask.predict_ratio": 1, "mask.num_masked_views": 1}
        for name, value in {**usual, "model.predictor": "joint"}.items():
            if attrgetter(name)(config) != value:
                raise InputError(name, attrgetter(name)(config), f"{fix} {value}")
    if objective.regularizer != "none":
        if config.optim.batch_size < 2:
            fix = f"{objective.regularizer} compares clips; give 2 or more"
            raise InputError("optim.batch_size", config.optim.batch_size, fix)
        if config.optim.accumulate > 1:
            value = f"{config.optim.accumulate} with objective.regularizer {objective.regularizer}"
            raise InputError("optim.accumulate", value, "it sees the whole batch at once; use 1")


def validate_tokens(config: TrainConfig, joints: int) -> None:
    """Check the mask count for a layout of V joints.

    Raises InputError if no token would stay visible, or none would be masked.
    """
    tokens = config.data.frames // config.model.segment_length * joints
    kept = kept_tokens(config.mask, tokens, joints)
    if not 0 < kept < tokens:
        value = f"{config.mask.ratio} of {tokens} tokens leaves {kept} visible"
        fix = "choose a ratio that keeps at least one token and masks at least one"
        raise InputError("mask.ratio", value, fix)
