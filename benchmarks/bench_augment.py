"""From a resident store to the tokens of a clip and of its view: per-clip loader, torch, ours.

`pytest benchmarks/bench_augment.py --benchmark-only`; on a GPU where there is one. The default
batch of 128 clips, 2 bodies, 120 frames and 25 joints. Each row checks its values before it is
timed, and reports GB/s of the bytes the op must move: the crop once, and both outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from benchmarks.conftest import COMPILES, Timed, value_checks, values_are_real
from benchmarks.reference.sampling import random_view
from benchmarks.steps import ntu_like_clips
from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.data.clips import ResidentClips, augmentation
from sjepa_kernels import augment_clips, clip_uniforms
from sjepa_kernels.augment.reference import augment_clips_ref, crop_bounds
from sjepa_kernels.native import LIBRARY
from sjepa_kernels.purposes import CROP
from sjepa_kernels.tubelets import to_tubelets

CLIPS, BATCH, CONFIG = 1024, 128, TrainConfig()
Tokens = tuple[Tensor, Tensor]
pytestmark = COMPILES
OURS_RUNS = pytest.mark.skipif(
    not torch.cuda.is_available() and LIBRARY is None, reason="the C++ library is not built"
)


@pytest.fixture(scope="module")
def clips(device: torch.device) -> ResidentClips:
    """Clips of about the lengths of NTU-60, a fifth of them with two bodies."""
    return ntu_like_clips(CLIPS, device, two_persons=0.2)


def per_clip(clips: ResidentClips, ids: Tensor, seed: Tensor, step: Tensor) -> Tokens:
    """What a loader's workers do: each clip on its own, then one view of the collated batch."""
    data, view = CONFIG.data, CONFIG.view
    draws = clip_uniforms(seed, step, ids, CROP, 2)
    bounds = crop_bounds(draws, clips.frames_N[ids], data.crop_min, data.crop_min_frames)
    batch = clips.joints_RVC.new_zeros(len(ids), data.bodies, data.frames, 25, 3)
    for row, (clip, start, length) in enumerate(
        zip(ids.tolist(), *(x.tolist() for x in bounds), strict=True)
    ):
        first, frames = int(clips.offsets_N[clip]), int(clips.frames_N[clip])
        for body in range(int(clips.bodies_N[clip])):
            begin = first + body * frames + start
            flat = clips.joints_RVC[begin : begin + length].flatten(1).T[None]
            resized = interpolate(flat, size=data.frames, mode="linear", align_corners=False)
            batch[row, body] = resized[0].T.reshape(data.frames, 25, 3)
    moved = random_view(batch, view.rotation, view.translation, view.flip)
    length = CONFIG.model.segment_length
    return to_tubelets(moved.flatten(0, 1), length), to_tubelets(batch.flatten(0, 1), length)


@pytest.mark.benchmark(group="store to clip and view tokens, 128 clips, float32")
@pytest.mark.parametrize(
    "variant", ["per clip", "eager", "compiled", pytest.param("ours", marks=OURS_RUNS)]
)
def test_augment(timed: Timed, clips: ResidentClips, device: torch.device, variant: str) -> None:
    if variant == "per clip" and not values_are_real():
        pytest.skip("it reads lengths from the device")
    torch.manual_seed(1)
    ids = torch.randperm(CLIPS)[:BATCH].to(device)
    seed, step = torch.tensor(0, device=device), torch.tensor(0, device=device)
    settings = augmentation(CONFIG, clips.max_bodies)
    store, args = clips.store, (ids, seed, step, clips.tables, settings)
    compiled = torch.compile(augment_clips_ref, dynamic=False)
    variants: dict[str, Callable[[], Tokens]] = {
        "per clip": lambda: per_clip(clips, ids, seed, step),
        "eager": lambda: augment_clips_ref(store, *args),
        "compiled": lambda: compiled(store, *args),
        "ours": lambda: augment_clips(*store, *args),
    }
    exact = augment_clips_ref(store._replace(joints_RVC=store.joints_RVC.double()), *args)
    for what, ours, true in zip(("view", "clip"), variants[variant](), exact, strict=True):
        # The loader draws a view of its own.
        if what == "clip" or variant != "per clip":
            with value_checks():
                torch.testing.assert_close(ours.double(), true, rtol=0, atol=1e-5)
    draws = clip_uniforms(seed, step, ids, CROP, 2)
    valid = clips.frames_N[ids]
    length = crop_bounds(draws, valid, settings.crop_min, settings.crop_min_frames)[1]
    read = int((length * clips.bodies_N[ids]).sum()) * 75
    numbers = read + 2 * exact[0].numel()
    facts = {"row": variant, "clips": BATCH, "gigabytes": round(numbers * 4e-9, 6)}
    timed(variants[variant], dtype=torch.float32, rounds=15, warmup=5, **facts)
