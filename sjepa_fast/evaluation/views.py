"""Random views of training clips for the protocols that train on them.

Shapes: B clips, M bodies, N tokens, P numbers a token.
"""

from __future__ import annotations

from torch import Tensor

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.data.clips import ResidentClips
from sjepa_fast.evaluation.request import Views
from sjepa_kernels import Augmentation, augment_clips


def training_tokens(
    clips: ResidentClips,
    ids_B: Tensor,
    seed: Tensor,
    step: Tensor,
    config: TrainConfig,
    views: Views,
) -> Tensor:
    """Crop, resize, rotate and cut clips into tubelets, in one launch.

    Args:
        clips: The resident store.
        ids_B: Clip ids, int64.
        seed: 0-dim int64.
        step: 0-dim int64; with clip id and seed it fixes the draws.
        config: Frames, shortest crop, stream and segment length.
        views: Ranges.

    Returns:
        (B*M, N, P) float32.
    """
    augmentation = Augmentation(
        frames=config.data.frames,
        bodies=clips.max_bodies,
        segment_length=config.model.segment_length,
        crop_min=views.crop_min,
        crop_min_frames=config.data.crop_min_frames,
        form=views.form,
        rotation=views.rotation,
        tilt=views.tilt,
        stream=config.data.stream,
    )
    held = clips.with_rows(ids_B)
    view, _ = augment_clips(
        held.joints_RVC,
        held.offsets_N,
        clips.frames_N,
        clips.bodies_N,
        ids_B,
        seed,
        step,
        clips.tables,
        augmentation,
        with_clip=False,
    )
    return view
