"""Named configurations. A preset named after a paper follows the paper."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sjepa_fast.config import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    LogConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    TrainConfig,
    ViewConfig,
    nearest,
)
from sjepa_fast.errors import InputError


def sjepa_ntu60_xsub() -> TrainConfig:
    """S-JEPA on NTU-60 cross-subject: the paper's values are the dataclass defaults.

    Ours, because the paper does not say: view ranges and pivot, 75 visible tokens, order of the
    centre's use and update, predictor layout, evaluation pooling.
    """
    return TrainConfig(run=Path("runs/sjepa-ntu60-xsub"), log=LogConfig(knn_every=10_000))


def _small_data(run: str, data: DataConfig, *, steps: int) -> TrainConfig:
    """Recipe for about a thousand clips on two CPU cores; everything here is our choice."""
    return TrainConfig(
        run=Path(run),
        data=data,
        model=ModelConfig(segment_length=4, width=64, depth=3, heads=2, predictor_depth=2),
        view=ViewConfig(rotation=1.2, tilt=0.2, translation=0.0, flip=0.0),
        objective=ObjectiveConfig(ema_start=0.99, ema_end=1.0),
        optim=OptimConfig(
            batch_size=64,
            unit="steps",
            length=steps,
            warmup=50,
            lr=1e-3,
            lr_end=1e-4,
            clip_grad=3.0,
        ),
        eval=EvalConfig(online_pool="full", knn_scaling="fitted", linear="logistic"),
        log=LogConfig(every=20, panel_every=100, knn_every=500),
        checkpoint=CheckpointConfig(every=500),
    )


def sjepa_nucla() -> TrainConfig:
    """N-UCLA in a few minutes on two cores (yaw-aligned, size-normalised, whitened tokens)."""
    return _small_data(
        "runs/sjepa-nucla",
        DataConfig(
            split="xview",
            frames=32,
            bodies=1,
            crop_min=0.6,
            crop_min_frames=8,
            eval_crop=1.0,
            center=True,
            align_yaw=True,
            normalize_size=True,
            whiten=1.0,
        ),
        steps=2400,
    )


def sjepa_demo() -> TrainConfig:
    """The embedded synthetic skeletons, small enough for a laptop."""
    return _small_data(
        "runs/demo",
        DataConfig(
            split="xsub_xview",
            frames=32,
            bodies=2,
            crop_min=0.6,
            crop_min_frames=8,
            eval_crop=1.0,
            center=True,
            align_yaw=True,
            normalize_size=True,
            whiten=1.0,
        ),
        steps=600,
    )


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "sjepa-demo": sjepa_demo,
    "sjepa-nucla": sjepa_nucla,
    "sjepa-ntu60-xsub": sjepa_ntu60_xsub,
}


def preset(name: str) -> TrainConfig:
    """Return the configuration of a preset.

    Args:
        name: One of `PRESETS`.

    Returns:
        A fresh configuration.

    Raises:
        InputError: If there is no such preset, with the nearest names.
    """
    if name not in PRESETS:
        raise InputError("preset", name, nearest(name, list(PRESETS)))
    return PRESETS[name]()
