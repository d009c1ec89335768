"""The settings of `augment_clips`: their ranges."""

from __future__ import annotations

import dataclasses

from sjepa_kernels import Augmentation
from tests.kernels.op_case import Absent, OpCase
from tests.kernels.spoils import INF, NAN

SETTINGS = Absent("settings, which augment_clips reads")
CASE = OpCase(
    op=Augmentation,
    tests=["test_augment.py"],
    arguments=lambda: dataclasses.asdict(Augmentation()),
    spoils={
        **{n: [0, -1] for n in ("frames", "bodies", "crop_min_frames")},
        "segment_length": [0, -1, 7],
        **{n: [-0.1, 1.1, NAN, INF] for n in ("crop_min", "scale", "flip")},
        **{n: [-0.1, NAN, INF] for n in ("rotation", "tilt", "translation", "shear")},
        "form": ["", "Body"],
        "stream": ["", "bones"],
        "sampling": ["", "frames"],
    },
    poison=SETTINGS,
    launches=SETTINGS,
    fuzz=SETTINGS,
    checked_with="augment_clips",
    in_triton=False,
)
