"""NTU text to denoised clips: the C++ reader beside the Python line parser, on one core.

`pytest benchmarks/bench_prepare.py --benchmark-only`. Synthetic people are written in the published
format, with numbers of seven significant digits like the real files; each row first checks that
both readers give the same clips.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from sjepa_fast.data.readers import ntu_text
from sjepa_fast.data.readers.ntu import clip_of
from sjepa_fast.data.readers.ntu_text import Tracks, parse_all, parse_bytes
from sjepa_fast.data.synthetic import ACTIONS, synthetic_clip

FILES = 20
NATIVE = getattr(ntu_text.LIBRARY, "sjepa_read_skeletons", None) is not None
needs_native = pytest.mark.skipif(not NATIVE, reason="the C++ reader is not built")
READERS = {
    "Python": lambda texts: [parse_bytes(text) for text in texts],
    "C++": lambda texts: parse_all(texts, 1),
}
ROWS = ["Python", pytest.param("C++", marks=needs_native)]


def skeleton_file(number: int) -> bytes:
    """A synthetic performance, of one or two people, as the sensor's text."""
    clip_MTVC = synthetic_clip(number % len(ACTIONS), number, camera=1, repetition=0)
    noise = np.random.default_rng(number)
    lines = [str(clip_MTVC.shape[1])]
    for frame_MVC in clip_MTVC.transpose(1, 0, 2, 3):
        seen = [(body, joints) for body, joints in enumerate(frame_MVC) if joints.any()]
        lines.append(str(len(seen)))
        for body, joints_VC in seen:
            lines += [f"{72057594037931691 + body} 0 1 1 1 1 0 -0.1057 0.2114 2", "25"]
            rest = noise.normal(size=(25, 8)) * [200, 200, 900, 500, 1, 1, 1, 1]
            for row in np.concatenate([joints_VC, rest], axis=1):
                lines.append(" ".join(f"{value:.7g}" for value in row) + " 2")
    return ("\n".join(lines) + "\n").encode()


@pytest.fixture(scope="module")
def texts() -> list[bytes]:
    return [skeleton_file(number) for number in range(FILES)]


def denoised(parsed: list[Tracks | str]) -> list[np.ndarray]:
    clips = [clip_of(one)[0] for one in parsed]
    assert all(clip is not None for clip in clips)
    return [clip for clip in clips if clip is not None]


@pytest.mark.parametrize("reader", ROWS)
@pytest.mark.parametrize("work", ["parse", "parse and denoise"])
def test_skeleton_text(
    texts: list[bytes], timed: Callable[..., None], work: str, reader: str
) -> None:
    read = READERS[reader]
    for ours, plain in zip(denoised(read(texts)), denoised(READERS["Python"](texts)), strict=True):
        assert np.array_equal(ours, plain)
    run = (lambda: denoised(read(texts))) if "denoise" in work else (lambda: read(texts))
    size = sum(map(len, texts)) / 2**20
    facts = {"files": FILES, "mebibytes": size, "reader_threads": 1}
    timed(run, dtype=torch.float64, rounds=15, **facts)
