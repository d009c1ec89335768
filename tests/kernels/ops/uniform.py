"""Uniform numbers from random words."""

from __future__ import annotations

import torch

from sjepa_kernels import uniform
from tests.kernels.op_case import Absent, OpCase
from tests.kernels.spoils import NOT_INTEGERS

CASE = OpCase(
    op=uniform,
    tests=["test_philox.py"],
    arguments=lambda: {"bits": torch.arange(5)},
    spoils={"bits": NOT_INTEGERS},
    uses=Absent("a device function of the masks and augment_clips, without memory of its own"),
    launches=Absent("a device function, compiled in the kernels of the masks and augment_clips"),
    fuzz=Absent("the random calls of clip_uniforms compare its numbers, bit for bit"),
)
