"""Named configurations. A preset named after a paper follows the paper."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

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


def _small_data(
    run: str,
    split: str,
    bodies: int,
    steps: int,
    batch_size: int,
    knn: int,
    pool: Literal["mean", "full"] = "full",
    synthetic: bool = False,
) -> TrainConfig:
    """Recipe for about a thousand clips on two CPU cores; everything here is our choice."""
    return TrainConfig(
        run=Path(run),
        data=DataConfig(
            synthetic=synthetic,
            split=split,
            frames=32,
            bodies=bodies,
            skip_empty_bodies=True,
            crop_min=0.6,
            crop_min_frames=8,
            eval_crop=1.0,
            center=True,
            align_yaw=True,
            normalize_size=True,
            whiten=1.0,
        ),
        model=ModelConfig(segment_length=4, width=64, depth=3, heads=2, predictor_depth=2),
        view=ViewConfig(rotation=1.2, tilt=0.2, translation=0.0, flip=0.0),
        objective=ObjectiveConfig(ema_start=0.99, ema_end=1.0),
        optim=OptimConfig(
            batch_size=batch_size,
            unit="steps",
            length=steps,
            warmup=50,
            lr=1e-3,
            lr_end=1e-4,
            clip_grad=3.0,
        ),
        eval=EvalConfig(online_pool=pool, knn_scaling="fitted", linear="logistic"),
        log=LogConfig(every=20, panel_every=100, knn_every=knn),
        checkpoint=CheckpointConfig(every=500),
    )


def sjepa_nucla() -> TrainConfig:
    """N-UCLA in minutes on two cores: aligned, size-normalised, whitened tokens (our recipe)."""
    return _small_data("runs/sjepa-nucla", "xview", bodies=1, steps=2400, batch_size=64, knn=400)


def sjepa_demo() -> TrainConfig:
    """The embedded synthetic skeletons, scored across views, in minutes (our recipe)."""
    return _small_data(
        "runs/demo",
        "xview",
        bodies=2,
        steps=1350,
        batch_size=32,
        knn=450,
        pool="mean",
        synthetic=True,
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
