"""Checks of a configuration before anything is built."""

from __future__ import annotations

import math

from sjepa_fast.config.schema import TrainConfig, kept_tokens
from sjepa_fast.config.traits import TRAITS
from sjepa_fast.errors import InputError


def validate(config: TrainConfig) -> None:
    """Check everything in a resolved configuration that needs no data.

    Raises InputError on the first value that cannot work, with the fix.
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
        ("view.scale", config.view.scale, 1),
        ("view.shear", config.view.shear, math.inf),
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
    """Check that the objective, its masks, its view and the networks fit together."""
    objective, mask = config.objective, config.mask
    norms = TRAITS[objective.kind].target_norms
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
    """Check the mask count for a layout of V joints.

    Raises InputError if no token would stay visible, or none would be masked.
    """
    tokens = config.data.frames // config.model.segment_length * joints
    kept = kept_tokens(config.mask, tokens, joints)
    if not 0 < kept < tokens:
        raise InputError(
            "mask.ratio",
            f"{config.mask.ratio} of {tokens} tokens leaves {kept} visible",
            "choose a ratio that keeps at least one token and masks at least one",
        )
