"""Crops and views against a float64 derivation, frame by frame, in every implementation here."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from sjepa_kernels import Augmentation, SkeletonTables, augment_clips, clip_uniforms
from sjepa_kernels.augment.reference import crop_bounds
from tests.kernels.augment_truth import (
    CENTER,
    FLIP,
    PARENTS,
    SMALL,
    TOP,
    VIEW,
    Packed,
    packed,
    run,
    scalars,
    truth_of,
)
from tests.kernels.cases import Place, assert_within_budget

HAS_CPP = True
SETTINGS = {
    "body axis": {"rotation": 1.0},
    "tilt, shift, flip": {"rotation": 1.0, "tilt": 0.4, "translation": 0.2, "flip": 0.5},
    "axes": {"form": "axes", "rotation": 0.7, "translation": 0.2, "flip": 0.5},
    "scale": {"scale": 0.3},
    "shear": {"shear": 0.5},
    "bone": {"stream": "bone", "flip": 0.5},
    "motion": {"stream": "motion", "translation": 0.2},
    "one frame a token": {"segment_length": 1, "frames": 7, "bodies": 1},
    "everything": {
        **{"rotation": 0.8, "tilt": 0.3, "translation": 0.3, "scale": 0.2, "shear": 0.3},
        **{"flip": 0.5, "stream": "bone_motion", "frames": 9, "segment_length": 3, "bodies": 3},
    },
    "axes, everything": {
        **{"form": "axes", "translation": 0.3, "scale": 0.2, "shear": 0.3, "flip": 0.5},
        **{"stream": "bone_motion", "crop_min": 1.0},
    },
    "two axes, warped, joints missing": {
        **{"form": "two_axes", "rotation": 1.05, "flip": 0.5, "time_warp": 0.5, "joint_drop": 0.4},
        **{"segment_length": 1, "frames": 7, "bodies": 1},
    },
    "strong": {
        **{"rotation": 1.0, "tilt": 0.3, "scale": 0.3, "time_warp": 0.4, "flip": 0.5},
        **{"stream": "all", "joint_drop": 0.3, "frames": 9, "segment_length": 3, "bodies": 3},
    },
    "short crops": {"crop_min": 0.1, "crop_min_frames": 1},
    "crop longer than any clip": {"crop_min_frames": 64},
}


CASES = [(name, dtype) for name in SETTINGS for dtype in (torch.float32, torch.float64)]
CASES += [(name, torch.float16) for name in ("body axis", "everything", "strong")]


def truth_at(store: Packed, ids: Tensor, a: Augmentation) -> list[Tensor]:
    """The truth with the seed and step of `run`."""
    return truth_of(store, ids, a, *scalars(Place("cpu", "torch")))


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_values(place: Place, name: str, dtype: torch.dtype) -> None:
    a = dataclasses.replace(SMALL, **SETTINGS[name])
    store, ids = packed(place, dtype), torch.tensor([2, 0, 3, 1, 3])
    ours = run(place, store, ids, a)
    eager = run(place, store, ids, a, impl="torch")
    truth = truth_at(store, ids, a)
    for what, mine, theirs, true in zip(("view", "clip"), ours, eager, truth, strict=True):
        assert_within_budget(mine, theirs, true, what)
        # Positions between frames are rounded to float32; what is left is far below a millimetre.
        tight = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"atol": 1e-5}
        torch.testing.assert_close(mine.cpu().double(), true, **{"rtol": 0.0} | tight)
    assert not torch.equal(*ours)


def test_more_than_one_block_and_a_body_that_appears_late(place: Place) -> None:
    a = dataclasses.replace(SMALL, frames=132, segment_length=4, tilt=0.1, flip=0.5)
    store = packed(place, repeat=2, scale=20)
    # The second body of clip 3 is there in the last 20 frames alone.
    first = int(store.offsets[3]) + 240
    store.joints[first : first + 220] = 0
    a = dataclasses.replace(a, crop_min=1.0)
    ids = torch.tensor([3, 1])
    ours, eager = run(place, store, ids, a), run(place, store, ids, a, impl="torch")
    assert eager[0][1].abs().amin(dim=1).max() > 0
    for mine, theirs, true in zip(ours, eager, truth_at(store, ids, a), strict=True):
        assert_within_budget(mine, theirs, true, "tokens")


# What the separate crop, view and tubelet functions gave for this store before they were fused.
BEFORE = {
    "view": (
        [-1.1464130878448486, -0.9288978576660156, 0.6606399416923523, 0.0, -0.12280789017677307],
        [-0.7049742341041565, 0.3462054133415222, -0.9043382406234741, 0.0, -0.8438040018081665],
        [-50.76145462691784, -46.85277387499809, -49.67179153859615, 0.0, -26.37283220514655],
        [165.39591573135496, 170.68832490249207, 163.94649534597283, 0.0, 148.76195123398816],
    ),
    "clip": (
        [-0.8066741228103638, -0.6055929660797119, 0.6732820868492126, 0.0, 0.17088717222213745],
        [-0.9409998655319214, 0.11704279482364655, -0.945593535900116, 0.0, -0.2231370359659195],
        [-28.542383577674627, -35.16094209998846, 10.568341767415404, 0.0, -0.8800249174237251],
        [144.09683363854276, 143.32570518853205, 137.77408227926517, 0.0, 146.040208647011],
    ),
}


def test_values_are_those_of_the_separate_functions(place: Place) -> None:
    frames, bodies = torch.tensor([5, 9, 4]), torch.tensor([1, 2, 2])
    rows = frames * bodies
    i = torch.arange(int(rows.sum()) * 45, dtype=torch.float64)
    joints = torch.sin(i * i * 0.37).float().view(-1, 15, 3)
    offsets = rows.cumsum(0) - rows
    joints[int(offsets[2]) + 4 : int(offsets[2]) + 8] = 0
    flip = (0, 1, 2, 6, 7, 8, 3, 4, 5, 12, 13, 14, 9, 10, 11)
    parents = (1, 2, 2, 1, 3, 4, 1, 6, 7, 2, 9, 10, 2, 12, 13)
    device = place.device
    store = [x.to(device) for x in (joints, offsets, frames, bodies)]
    a = Augmentation(
        frames=8, crop_min=0.5, crop_min_frames=3, rotation=0.9, tilt=0.2, translation=0.3, flip=0.5
    )
    seed, step = scalars(place, 2**40 + 7, 3)
    ids = torch.tensor([1, 0, 2], device=device)
    skeleton = SkeletonTables.of(flip, parents, 2, 1, device)
    out = augment_clips(*store, ids, seed, step, skeleton, a, impl=place.impl)
    for what, tokens in zip(("view", "clip"), out, strict=True):
        x = tokens.cpu().double()
        found = x[:, 17, 4], x[:, 3, 8], x.sum((1, 2)), x.square().sum((1, 2))
        for values, before, slack in zip(
            found, BEFORE[what], (1e-5, 1e-5, 1e-4, 1e-4), strict=True
        ):
            expected = torch.tensor([*before, 0.0], dtype=torch.float64)
            torch.testing.assert_close(values, expected, rtol=0, atol=slack)


def joints_of(tokens: Tensor, a: Augmentation, joints: int = len(FLIP)) -> Tensor:
    """Tokens back to (sequences, T, V, 3)."""
    grid = tokens.view(len(tokens), -1, joints, a.segment_length, 3)
    return grid.transpose(2, 3).reshape(len(tokens), a.frames, joints, 3)


def bones(x: Tensor) -> Tensor:
    return (x - x[:, :, list(PARENTS)]).norm(dim=-1)


def test_flip_twice_is_the_identity(place: Place) -> None:
    a = dataclasses.replace(SMALL, crop_min=1.0, rotation=0.0, flip=1.0, crop_min_frames=1)
    store = packed(place)
    # Clip 1 has two bodies; resized once to T frames, the second crop changes nothing.
    once, clip = run(place, store, torch.tensor([1]), a)
    mirrored = Packed(
        joints_of(once, a).flatten(0, 1),
        torch.zeros_like(store.offsets[:1]),
        torch.full_like(store.frames[:1], a.frames),
        torch.full_like(store.bodies[:1], 2),
        store.skeleton,
    )
    assert (once - clip).abs().max() > 0.1
    twice, unchanged = run(place, mirrored, torch.tensor([0]), a)
    assert torch.equal(unchanged, once)
    torch.testing.assert_close(twice, clip, rtol=0, atol=2e-6)


@pytest.mark.parametrize("form", ["body", "axes"])
def test_rotation_keeps_bone_lengths_and_scale_multiplies_them(place: Place, form: Any) -> None:
    a = dataclasses.replace(SMALL, form=form, rotation=1.5, scale=0.4)
    store, ids = packed(place, torch.float64), torch.tensor([1, 3])
    view, clip = (joints_of(x, a) for x in run(place, store, ids, a))
    drawn = clip_uniforms(*scalars(place), ids.to(place.device), VIEW, 8)[:, 7].double()
    factor = (1 + 0.4 * (2 * drawn - 1)).repeat_interleave(2)[:, None, None]
    assert (factor - 1).abs().min() > 0.01
    torch.testing.assert_close(bones(view), factor * bones(clip))
    assert (view - clip).abs().mean() > 0.1
    if form == "body":
        # The axis and the pivot stay where they are.
        for x in (view, clip):
            x[:] -= x[:, :, :1].mean(dim=1, keepdim=True)[::2].repeat_interleave(2, 0)
        torch.testing.assert_close(
            view[::2, :, TOP].mean(1), factor[::2, 0] * clip[::2, :, TOP].mean(1)
        )


def test_missing_joints_are_missing_from_the_view_alone(place: Place) -> None:
    a = dataclasses.replace(SMALL, stream="all", flip=0.5, translation=0.2)
    store, ids = packed(place, repeat=5), torch.tensor([1, 3])
    whole, clip = run(place, store, ids, a)
    view, same = run(place, store, ids, dataclasses.replace(a, joint_drop=0.3))
    assert torch.equal(clip, same)
    # (bodies of both clips, segments, joints, numbers)
    seen = view.unflatten(1, (3, -1)) != 0
    missing = ~seen.flatten(3).any(dim=3)
    assert torch.equal(missing, missing[[0, 0, 2, 2], :1].expand_as(missing))
    assert 0.15 < missing[::2, 0].float().mean() < 0.45
    assert not torch.equal(missing[0], missing[2])
    # What is there is as it was, also the bone of a joint whose parent is missing.
    there = ~missing[..., None].expand_as(seen).flatten(1, 2)
    assert torch.equal(view[there], whole[there])


def test_a_warp_of_time_keeps_the_order_and_the_ends(place: Place) -> None:
    a = dataclasses.replace(SMALL, frames=24, segment_length=1, bodies=1, crop_min=1.0)
    store = packed(place, scale=8)
    last = int(store.frames[3]) - 1
    store.joints[int(store.offsets[3]) :, :, 0] = torch.arange(2 * last + 2).to(store.joints)[
        :, None
    ]
    speeds = []
    for step in range(4):
        warped = dataclasses.replace(a, time_warp=0.4)
        _, clip = run(place, store, torch.tensor([3]), warped, step=step)
        at = joints_of(clip, a)[0, :, 0, 0].cpu()
        assert at[0] < 4 and at[-1] > last - 4
        speeds.append(at.diff() / (last + 1) * a.frames)
    # A warp of w changes the speed by up to 2 w.
    assert 0.2 - 1e-3 <= torch.stack(speeds).min() < 0.8
    assert 1.2 < torch.stack(speeds).max() <= 1.8 + 1e-3


def test_absent_bodies_are_zero_and_zero_bodies_are_absent(place: Place) -> None:
    a = dataclasses.replace(SMALL, translation=0.5, flip=1.0)
    store = packed(place)
    first = int(store.offsets[1])
    store.joints[first + 5 : first + 10] = 0
    for tokens in run(place, store, torch.tensor([0, 1, 3]), a):
        assert [bool(x.any()) for x in tokens] == [True, False, True, False, True, True]
    # Without a first body there is neither axis nor pivot: the second turns about the vertical.
    store.joints[first + 5 : first + 10] = 1
    store.joints[first : first + 5] = 0
    view, clip = run(place, store, torch.tensor([1]), dataclasses.replace(a, flip=0.0))
    assert not view[0].any()
    up = joints_of(view, a)[1, ..., 1] - joints_of(clip, a)[1, ..., 1]
    torch.testing.assert_close(up, up[:1, :1].expand_as(up))


def test_draws_depend_on_clip_and_step_alone(place: Place) -> None:
    a = dataclasses.replace(SMALL, translation=0.1, flip=0.5)
    store = packed(place)
    together = run(place, store, torch.tensor([2, 3, 3, 1]), a)
    alone = run(place, store, torch.tensor([3], dtype=torch.int32), a)
    for many, one in zip(together, alone, strict=True):
        assert torch.equal(many[2:4], one) and torch.equal(many[4:6], one)
    later = run(place, store, torch.tensor([3]), a, step=6)
    assert not torch.equal(later[0], alone[0]) and not torch.equal(later[1], alone[1])
    only, nothing = run(place, store, torch.tensor([3]), a, with_clip=False)
    assert torch.equal(only, alone[0]) and nothing.shape == (0, *only.shape[1:])


def test_empty_batch_and_strided_store(place: Place) -> None:
    store = packed(place)
    empty = run(place, store, torch.zeros(0, dtype=torch.int64), SMALL)
    assert [x.shape for x in empty] == [(0, 18, 6), (0, 18, 6)]
    wide = torch.stack([store.joints, store.joints], dim=-1)[..., 0]
    assert not wide.is_contiguous()
    for x, y in zip(
        run(place, dataclasses.replace(store, joints=wide), torch.tensor([3]), SMALL),
        run(place, store, torch.tensor([3]), SMALL),
        strict=True,
    ):
        assert torch.equal(x, y)


WRONG_CLIPS = [("offsets", 1, -1), ("offsets", 3, 21), ("frames", 2, 0), ("frames", 3, 13)]


@pytest.mark.parametrize(("name", "at", "to"), [*WRONG_CLIPS, ("bodies", 3, 3), ("ids", 4, 4)])
def test_clips_that_are_not_in_the_store(place: Place, name: str, at: int, to: int) -> None:
    """An error where tables can be read at once; NaN from the kernel, which nobody waits for."""
    store, ids = packed(place), torch.tensor([0, at], device=place.device)
    if name != "ids":
        getattr(store, name)[at] = to
    if place.device == "cpu":
        with pytest.raises(ValueError, match=f"^(offsets|{name}): "):
            run(place, store, ids, SMALL)
    if place.impl != "triton":
        return
    tables = store.skeleton.flip_V, store.skeleton.parents_V
    ranges, sizes = [0.5, 0.1, 0.3, 0.0, 0.0, 0.0, 0.0, 0.5, 0.2], [6, 2, 2, 3, CENTER, TOP]
    inputs = (*store.args(), ids, *scalars(place), *tables)
    for out in torch.ops.sjepa.augment_clips(*inputs, sizes, ranges, "body", "joint", True):
        assert torch.isfinite(out[:2]).all() and torch.isnan(out[2:]).all()


def test_crop_stays_inside_the_clip_and_has_the_least_length() -> None:
    grid = torch.tensor([[u, v] for u in (0.0, 0.3, 0.999999) for v in (0.0, 0.5, 0.999999)])
    start, length = crop_bounds(grid, torch.full((9,), 40), 0.5, 10)
    assert (start >= 0).all() and (start + length <= 40).all()
    assert length.min() == 20 and length.max() >= 39
    assert start[length == 20].max() == 20
    start, length = crop_bounds(grid, torch.full((9,), 7), 0.5, 10)
    assert (start == 0).all() and (length == 7).all(), "a clip shorter than the least is kept whole"
