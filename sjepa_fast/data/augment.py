"""What the fused augmentation is told: the run's crops and views, and the joints of a layout.

All draws are counter-based: (seed, step, clip id) and the stream they belong to fix them on any
device and for any number of processes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.skeletons import SkeletonLayout
from sjepa_kernels import Augmentation, SkeletonTables

Stream = Literal["joint", "bone", "motion", "bone_motion"]

# Stream of the first mask's draws, of which further masks of a clip take the next ones; 0 and 1 are
# those of the crop and the view.
MASK = 2
# Stream of the draws of what is predicted of the first mask; further masks take the next ones.
PREDICT = 1 << 16


def augmentation(config: TrainConfig, bodies: int) -> Augmentation:
    """Return the run's crop, view and tubelets for clips of `bodies` bodies (method 3.3).

    The ranges of the view and its pivot, the clip-mean centre of the first body, are our choice.
    """
    return Augmentation(
        frames=config.data.frames,
        bodies=bodies,
        segment_length=config.model.segment_length,
        crop_min=config.data.crop_min,
        crop_min_frames=config.data.crop_min_frames,
        form=config.view.form,
        rotation=config.view.rotation,
        tilt=config.view.tilt,
        translation=config.view.translation,
        flip=config.view.flip,
        stream=config.data.stream,
    )


def to_stream(x_BMTVC: Tensor, parents_V: Tensor, stream: Stream) -> Tensor:
    """Turn joints into a stream: bones (child - parent), motion (x[t+1] - x[t], last 0), or both.

    Source: method 1.5; absent bodies stay zero.
    """
    if stream in ("bone", "bone_motion"):
        x_BMTVC = x_BMTVC - x_BMTVC[..., parents_V, :]
    if stream in ("motion", "bone_motion"):
        x_BMTVC = x_BMTVC.diff(dim=2, append=x_BMTVC[:, :, -1:])
    return x_BMTVC


def skeleton_tables(layout: SkeletonLayout, device: torch.device) -> SkeletonTables:
    """Copy what the fused augmentation needs of a layout to the device."""
    return SkeletonTables.of(
        layout.flip_permutation(), layout.parents, layout.center, layout.spine_top, device
    )
