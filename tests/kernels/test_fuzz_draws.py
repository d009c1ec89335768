"""Random calls of what draws, crops and masks: right against integers, loops and float64."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sjepa_kernels import (
    Augmentation,
    SkeletonTables,
    augment_clips,
    clip_uniforms,
    crop_resize,
    motion_aware_mask,
    philox4x32,
    random_mask,
    tube_mask,
)
from sjepa_kernels._triton import INTERPRETED
from tests.kernels.augment_truth import Packed, truth_of
from tests.kernels.cases import Place
from tests.kernels.fuzzing import (
    FLOATS,
    Draw,
    assert_rounded,
    fuzz,
    laid_out,
    normal,
    one_of,
    random_ids,
    size,
)


def philox_in_integers(seed: int, counter: list[int]) -> list[int]:
    """The definition in Python's integers."""
    mask = 2**32 - 1
    k0, k1 = seed & mask, seed >> 32 & mask
    c0, c1, c2, c3 = (c & mask for c in counter)
    for _ in range(10):
        high, low = divmod(c0 * 0xD2511F53, 2**32), divmod(c2 * 0xCD9E8D57, 2**32)
        c0, c1, c2, c3 = low[0] ^ c1 ^ k0, low[1], high[0] ^ c3 ^ k1, high[1]
        k0, k1 = k0 + 0x9E3779B9 & mask, k1 + 0xBB67AE85 & mask
    return [c0, c1, c2, c3]


@fuzz
@given(data=st.data())
def test_philox(data: Draw) -> None:
    """Counters of any sign, shape, stride and integer dtype, broadcast against each other."""
    seed = data.draw(st.integers(-(2**63), 2**63 - 1))
    shape = (size(data, 0, 3), size(data, 0, 3))
    counters: list[Any] = []
    for _ in range(4):
        if data.draw(st.booleans()):
            counters.append(data.draw(st.integers(-(2**70), 2**70)))
            continue
        dtype = one_of(data, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
        torch.manual_seed(size(data, 0, 99))
        info = torch.iinfo(dtype)
        values = torch.randint(info.min, info.max, shape[size(data, 0, 2) :], dtype=dtype)
        counters.append(laid_out(values.to(dtype), one_of(data, "dense", "turned", "expanded")))
    words = philox4x32(torch.tensor(seed), *counters)
    tensors = [torch.as_tensor(c & 2**32 - 1 if isinstance(c, int) else c.long()) for c in counters]
    full = torch.broadcast_tensors(*tensors)
    expected = [
        philox_in_integers(seed, list(c))
        for c in zip(*(f.flatten().tolist() for f in full), strict=True)
    ]
    assert all(word.shape == full[0].shape and word.dtype == torch.int64 for word in words)
    assert torch.stack([word.flatten() for word in words], -1).tolist() == expected


@fuzz
@given(data=st.data())
def test_clip_uniforms(data: Draw) -> None:
    seed, step = (data.draw(st.integers(-(2**63), 2**63 - 1)) for _ in range(2))
    purpose, count, clips = data.draw(st.integers(0, 2**32 - 1)), size(data, 0, 9), size(data)
    ids = random_ids(data, Place("cpu", "torch"), (1, clips), 2**31, distinct=False)[0]
    drawn = clip_uniforms(torch.tensor(seed), torch.tensor(step), ids, purpose, count)
    assert drawn.shape == (clips, count) and drawn.dtype == torch.float32
    for row, clip in zip(drawn.tolist(), ids.tolist(), strict=True):
        words = [w for c in range(3) for w in philox_in_integers(seed, [c, clip, step, purpose])]
        assert row == [(word >> 8) / 2**24 for word in words[:count]]


def random_store(data: Draw, place: Place, joints: int) -> Packed:
    """Up to four clips of 1 to 9 frames with no to 3 bodies, in a dtype and strides of any kind."""
    clips = size(data, 1)
    frames = torch.tensor([size(data, 1, 9) for _ in range(clips)])
    bodies = torch.tensor([size(data, 0, 3) for _ in range(clips)])
    rows = frames * bodies
    flip = data.draw(st.permutations(range(joints)))
    parents = [size(data, 0, joints - 1) for _ in range(joints)]
    skeleton = SkeletonTables.of(
        flip, parents, size(data, 0, joints - 1), size(data, 0, joints - 1), place.device
    )
    values = normal(data, place, (int(rows.sum()), joints, 3), one_of(data, *FLOATS))
    tables = (x.to(place.device) for x in (rows.cumsum(0) - rows, frames, bodies))
    return Packed(values, *tables, skeleton)


@fuzz
@given(data=st.data())
def test_crop_resize(data: Draw) -> None:
    """Every coordinate is NumPy's linear interpolation at half-pixel centers."""
    place = Place("cpu", "torch")
    store = random_store(data, place, size(data, 1, 3))
    ids = random_ids(data, place, (1, size(data)), len(store.frames), distinct=False)[0]
    valid = store.frames[ids].tolist()
    length = [size(data, 1, n) for n in valid]
    start = [size(data, 0, all_ - n) for all_, n in zip(valid, length, strict=True)]
    frames, bodies = size(data, 1, 7), size(data, 1, 3)
    arguments = (torch.tensor(x, dtype=torch.int64) for x in (start, length))
    out = crop_resize(*store.args(), ids, *arguments, frames, bodies)
    expected = np.zeros(out.shape)
    joints = store.joints.double().numpy()
    for b, clip in enumerate(ids.tolist()):
        at = np.arange(length[b])
        wanted = (np.arange(frames) + 0.5) * length[b] / frames - 0.5
        for m in range(min(int(store.bodies[clip]), bodies)):
            first = int(store.offsets[clip]) + m * valid[b] + start[b]
            for v, c in np.ndindex(joints.shape[1:]):
                column = joints[first : first + length[b], v, c]
                expected[b, m, :, v, c] = np.interp(wanted, at, column)
    assert_rounded(out, torch.from_numpy(expected), "crop", 1e-6)


# An interpreted launch takes a second.
@settings(fuzz, max_examples=6 if INTERPRETED else 60)
@given(data=st.data())
def test_augment_clips(place: Place, data: Draw) -> None:
    store = random_store(data, place, size(data, 1, 5))
    a = Augmentation(
        frames=6,
        bodies=size(data, 1, 3),
        segment_length=one_of(data, 1, 2, 3, 6),
        crop_min=one_of(data, 0.0, 0.5, 1.0),
        crop_min_frames=size(data, 1, 10),
        form=one_of(data, "body", "axes"),
        rotation=one_of(data, 0.0, 0.5, 3.0),
        translation=one_of(data, 0.0, 0.4),
        scale=one_of(data, 0.0, 0.3, 1.0),
        shear=one_of(data, 0.0, 0.5),
        flip=one_of(data, 0.0, 0.5, 1.0),
        stream=one_of(data, "joint", "bone", "motion", "bone_motion"),
    )
    if a.form == "body":
        a = dataclasses.replace(a, tilt=one_of(data, 0.0, 0.3))
    ids = random_ids(data, place, (1, size(data)), len(store.frames), distinct=False)[0]
    keys = [data.draw(st.integers(-(2**63), 2**63 - 1)) for _ in range(2)]
    seed, step = (torch.tensor(k, device=place.device) for k in keys)
    with_clip = data.draw(st.booleans(), label="with clip")
    ours = augment_clips(
        *store.args(), ids, seed, step, store.skeleton, a, with_clip=with_clip, impl=place.impl
    )
    truth = truth_of(store, ids.cpu(), a, seed.cpu(), step.cpu())
    assert ours[1].shape == (truth[1].shape if with_clip else (0, *truth[1].shape[1:]))
    # The axis of a body without extent, whose spine has joints in one place, is the vertical.
    for got, true in zip(ours[: 1 + with_clip], truth, strict=False):
        wide = torch.float64 if store.joints.dtype == torch.float64 else torch.float32
        assert got.dtype == wide and got.shape == true.shape
        atol = 1e-10 if wide == torch.float64 else 2e-4
        torch.testing.assert_close(got.double().cpu(), true, rtol=0, atol=atol)


@settings(fuzz, max_examples=16 if INTERPRETED else 80)
@given(data=st.data())
def test_masks(place: Place, data: Draw) -> None:
    """Every id follows from keys in float64, but where two keys at the cut are as good as equal."""
    clips, bodies, tubes = size(data, 0, 3), size(data, 1, 2), size(data, 1, 3)
    joints, length = size(data, 1, 9), size(data, 1, 3)
    kind = one_of(data, "motion", "random", "tube")
    if kind != "tube":
        tubes, length = tubes * length, 1
    coords, segments = size(data, 1, 3), tubes * length
    numbers = coords * size(data, 1, 3)
    x = normal(data, place, (clips * bodies, segments * joints, numbers), one_of(data, *FLOATS))
    x = x * one_of(data, 0.0, 1e-3, 1.0, 1e3)
    groups, each = (tubes, joints) if kind == "tube" else (1, segments * joints)
    keep = size(data, 0, each)
    seed, step = (data.draw(st.integers(-(2**63), 2**63 - 1)) for _ in range(2))
    ids = random_ids(data, place, (1, clips), 2**31, distinct=False)[0]
    keys = {"step": one_of(data, step, torch.tensor(step, device=place.device)), "bodies": bodies}
    keys |= {"clip_ids_C": ids, "purpose": size(data, 0, 5), "impl": place.impl}
    first = torch.tensor(seed, device=place.device)
    i = np.arange(bodies * groups * each)
    words = [
        [philox_in_integers(seed, [k // 4, clip, step, keys["purpose"]])[k % 4] for k in i.tolist()]
        for clip in ids.tolist()
    ]
    u = (np.array(words, dtype=np.int64).reshape(clips * bodies, groups, each) >> 8) / 2.0**24
    frames = (
        x.double()
        .cpu()
        .numpy()
        .reshape(clips * bodies, segments, joints, numbers // coords, coords)
    )
    if kind == "random":
        mask = random_mask(clips * bodies, segments * joints, keep, first, **keys)
        truth = u
    elif kind == "motion":
        tau = one_of(data, 0.05, 0.8, 5.0)
        mask = motion_aware_mask(x, keep, first, joints=joints, tau=tau, **keys)
        change = np.abs(np.diff(frames, axis=1)).mean(axis=(3, 4))
        begin = change[:, :1] if segments > 1 else np.zeros((clips * bodies, 1, joints))
        motion = np.concatenate([begin, change], axis=1).reshape(u.shape)
        heat = motion / (motion.max(axis=2, keepdims=True) * tau + 1e-10)
        rounded = (u.astype(np.float32) + np.float32(1e-10)).astype(np.float64)
        truth = heat - np.log(-np.log(rounded) + 1e-10)
    else:
        scale = one_of(data, 0.0, 0.1, 3.0)
        options = {"tube_length": length, "scale": scale, "coords": coords}
        mask = tube_mask(x, keep, first, joints=joints, **options, **keys)
        order = np.moveaxis(frames, 2, 3).reshape(
            clips * bodies, segments * numbers // coords, joints, coords
        )
        change = np.abs(np.diff(order, axis=1, append=order[:, -1:])).mean(axis=3)
        of_tubes = clips * bodies, tubes, length * numbers // coords, joints
        motion = change.reshape(of_tubes).mean(axis=2)
        truth = u + scale * motion / (motion.max(axis=2, keepdims=True) + 1e-6)
    kept, hidden, restore = (t.cpu().numpy() for t in mask)
    assert kept.shape == (clips * bodies, groups * length * keep)
    visible = np.zeros((clips * bodies, segments * joints), dtype=bool)
    np.put_along_axis(visible, kept, True, axis=1)
    for row, keep_row, hide_row, back in zip(visible, kept, hidden, restore, strict=True):
        assert keep_row.tolist() == np.flatnonzero(row).tolist()
        assert hide_row.tolist() == np.flatnonzero(~row).tolist()
        assert np.concatenate([keep_row, hide_row])[back].tolist() == list(range(len(row)))
    by_group = visible.reshape(clips * bodies, groups, length, each)
    assert (by_group == by_group[:, :, :1]).all(), "a tube's segments differ"
    by_group = by_group[:, :, 0]
    assert (by_group.sum(axis=2) == keep).all()
    largest = np.where(by_group, truth, -np.inf).max(axis=2, initial=-np.inf)
    smallest = np.where(by_group, np.inf, truth).min(axis=2, initial=np.inf)
    assert (largest <= smallest + 4e-6 * np.maximum(1, np.abs(truth).max(axis=2, initial=0))).all()
