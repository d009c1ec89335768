"""Features of clips as large as N-UCLA's, by the model that comes with the package.

`OMP_NUM_THREADS=2 pytest benchmarks/bench_embed.py --benchmark-only`. `clips` of a row over its
median time are its clips per second, with checks, normalisation, crop and encoder.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sjepa_fast
from benchmarks.conftest import Timed

CLIPS = 1024


@pytest.mark.benchmark(group=f"embed, {CLIPS} clips of N-UCLA's size")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_embed(timed: Timed, device: torch.device, dtype: str) -> None:
    """One person, 20 joints, and N-UCLA's lengths: 31 frames in the middle, 1 to 201."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(31), 0.65, CLIPS), 1, 201).astype(int)
    clips = [rng.normal(size=(n, 20, 3), scale=0.4).astype(np.float32) for n in lengths]
    model = sjepa_fast.load("tiny", device=str(device), dtype=dtype)
    assert model.embed(clips, layout="kinect20").shape == (CLIPS, 64)
    timed(
        lambda: model.embed(clips, layout="kinect20"),
        dtype=getattr(torch, dtype),
        row="embed",
        clips=CLIPS,
    )
