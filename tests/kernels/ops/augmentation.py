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
    says=[
        ({"frames": 7, "segment_length": 2}, "segment_length: 2; choose a divisor of frames = 7"),
        ({"bodies": 0}, "bodies: 0; give at least 1"),
        ({"flip": 1.5}, "flip: 1.5; give a finite number from 0 to 1"),
        ({"rotation": float("nan")}, "rotation: nan; give a finite number"),
        ({"shear": -0.1}, "shear: -0.1; give a finite number from 0"),
        ({"form": "spin"}, "form: 'spin'; choose one of body, axes, two_axes"),
        ({"stream": "velocity"}, "stream: 'velocity'; choose one of joint, bone"),
        ({"form": "axes", "tilt": 0.1}, 'tilt: 0.1; use form="body"'),
        ({"form": "two_axes", "tilt": 0.1}, 'tilt: 0.1; use form="body"'),
        ({"time_warp": 0.6}, "time_warp: 0.6; give a finite number from 0 to 0.5"),
        ({"sampling": "index", "time_warp": 0.1}, 'time_warp: 0.1; use sampling="resize"'),
        ({"joint_drop": 1.5}, "joint_drop: 1.5; give a finite number from 0 to 1"),
    ],
    spoils={
        **{n: [0, -1] for n in ("frames", "bodies", "crop_min_frames")},
        "segment_length": [0, -1, 7],
        **{n: [-0.1, 1.1, NAN, INF] for n in ("crop_min", "scale", "flip", "joint_drop")},
        "time_warp": [-0.1, 0.6, NAN, INF],
        **{n: [-0.1, NAN, INF] for n in ("rotation", "tilt", "translation", "shear")},
        "form": ["", "Body"],
        "stream": ["", "bones"],
        "sampling": ["", "frames"],
    },
    uses=SETTINGS,
    launches=SETTINGS,
    fuzz=SETTINGS,
    checked_with="augment_clips",
    in_triton=False,
)
