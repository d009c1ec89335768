"""Crop, turn, mirror, take the stream and cut into tubelets, in one launch."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sjepa_kernels import Augmentation, SkeletonTables, augment_clips
from sjepa_kernels.tubelets import stream_coords
from tests.kernels.augment_truth import packed, truth_of
from tests.kernels.cases import Place, meta
from tests.kernels.fuzzing import Draw
from tests.kernels.op_case import Arguments, Fuzz, Launch, OpCase, Use
from tests.kernels.ops import _store
from tests.kernels.spoils import KEYS, TABLE, WRONG_CHOICE


def arguments() -> Arguments:
    keys = {"seed": torch.tensor(5), "step": torch.tensor(2)}
    skeleton = {"flip": torch.tensor([0, 1, 3, 2]), "parents": torch.tensor([0, 0, 1, 1])}
    tables = {f"skeleton.{name}": table for name, table in skeleton.items()}
    return _store.arguments() | keys | tables | {"impl": "auto"}


def calls(a: Arguments) -> object:
    joints, offsets, frames, bodies, ids, seed, step, flip, parents, impl = a.values()
    store, tables = (joints, offsets, frames, bodies), SkeletonTables(flip, parents, 0, 1)
    return augment_clips(*store, ids, seed, step, tables, Augmentation(frames=8), impl=impl)


def use(place: Place, dtype: torch.dtype, small: bool) -> Use:
    """Clips of one and of two bodies, with fewer and with as many frames as are wanted."""
    store = packed(place, dtype)
    a = Augmentation(frames=12, flip=0.5, tilt=0.1, shear=0.1, scale=0.1, translation=0.1)
    a = dataclasses.replace(a, time_warp=0.2, joint_drop=0.2)
    ids = torch.tensor([1, 0, 3], device=place.device)
    keys = torch.randint(99, (2,)).to(place.device).unbind()

    def tokens(joints: Tensor, ids: Tensor, seed: Tensor, step: Tensor) -> tuple[Tensor, ...]:
        args = *store.args()[1:], ids, seed, step, store.skeleton, a
        view, _ = augment_clips(joints, *args, with_clip=False, impl=place.impl)
        return view, *augment_clips(joints, *args, impl=place.impl)

    return Use(tokens, [store.joints, ids, *keys])


DEFAULT = Augmentation(translation=0.1, flip=0.5)
EVERYTHING = Augmentation(
    frames=60, tilt=0.1, translation=0.1, scale=0.1, shear=0.1, flip=0.5, stream="bone_motion"
)
SETTINGS = {
    "default": DEFAULT,
    "mamp": dataclasses.replace(DEFAULT, form="axes", translation=0.0, flip=0.0),
    "all": EVERYTHING,
    "strong": dataclasses.replace(
        EVERYTHING, form="two_axes", tilt=0.0, time_warp=0.2, joint_drop=0.1, stream="all"
    ),
    "odd": dataclasses.replace(EVERYTHING, frames=33, bodies=1, segment_length=3),
}


def launch(a: Augmentation, dtype: torch.dtype, joints: int) -> Launch:
    """Launch for 128 clips of a store of 40,000."""
    whole = torch.int64
    inputs = [meta(4_000_000, joints, 3, dtype=dtype)]
    inputs += [meta(40_000, dtype=whole) for _ in range(3)]
    inputs += [meta(*shape, dtype=whole) for shape in ((128,), (), (), (joints,), (joints,))]
    sizes = [a.frames, a.bodies, a.segment_length, a.crop_min_frames, 0, joints - 5]
    ranges = [a.crop_min, a.time_warp, a.rotation, a.tilt, a.translation, a.scale, a.shear]
    ranges += [a.flip, a.joint_drop]
    tokens, coords = a.frames // a.segment_length * joints, stream_coords(a.stream)
    out = meta(128 * a.bodies, tokens, a.segment_length * coords)
    return "augment.kernel", lambda module: module.launch(
        inputs, out, out, sizes, ranges, a.form, a.stream
    )


def random_call(draw: Draw) -> None:
    store = _store.random_store(draw, draw.size(1, 5))
    length = draw.one_of(1, 2, 3, 6)
    a = Augmentation(
        frames=length * draw.one_of(1, 6 // length),
        sampling=draw.one_of("resize", "index"),
        bodies=draw.size(1, 3),
        segment_length=length,
        crop_min=draw.one_of(0.0, 0.5, 1.0),
        crop_min_frames=draw.size(1, 10),
        form=draw.one_of("body", "axes", "two_axes"),
        rotation=draw.one_of(0.0, 0.5, 3.0),
        translation=draw.one_of(0.0, 0.4),
        scale=draw.one_of(0.0, 0.3, 1.0),
        shear=draw.one_of(0.0, 0.5),
        flip=draw.one_of(0.0, 0.5, 1.0),
        joint_drop=draw.one_of(0.0, 0.4, 1.0),
        stream=draw.one_of("joint", "bone", "motion", "bone_motion", "all"),
    )
    if a.form == "body":
        a = dataclasses.replace(a, tilt=draw.one_of(0.0, 0.3))
    if a.sampling == "resize":
        a = dataclasses.replace(a, time_warp=draw.one_of(0.0, 0.5))
    ids = draw.ids((1, draw.size()), len(store.frames))[0]
    seed, step = (torch.tensor(draw.int64(), device=draw.device) for _ in range(2))
    with_clip = draw.flag()
    ours = augment_clips(
        *store.args(), ids, seed, step, store.skeleton, a, with_clip=with_clip, impl=draw.impl
    )
    truth = truth_of(store, ids.cpu(), a, seed.cpu(), step.cpu())
    assert ours[1].shape == (truth[1].shape if with_clip else (0, *truth[1].shape[1:]))
    # The axis of a body without extent, whose spine has joints in one place, is the vertical.
    for got, true in zip(ours[: 1 + with_clip], truth, strict=False):
        wide = torch.float64 if store.joints.dtype == torch.float64 else torch.float32
        assert got.dtype == wide and got.shape == true.shape
        atol = 1e-10 if wide == torch.float64 else 2e-4
        torch.testing.assert_close(got.double().cpu(), true, rtol=0, atol=atol)


CASE = OpCase(
    op=augment_clips,
    tests=["test_augment.py"],
    arguments=arguments,
    calls=calls,
    says=[
        ({"joints": torch.zeros(4, 6)}, r"joints: \(4, 6\); expected \(R, V, 3\)"),
        ({"joints": torch.zeros(4, 6, 3).int()}, r"joints: torch.int32"),
        ({"frames": torch.tensor([2])}, r"frames: \(1,\); expected \(N,\)"),
        ({"bodies": torch.tensor([1, 1, 1]).int()}, "bodies: torch.int32; pass an int64"),
        ({"ids": torch.tensor([0, 3])}, r"ids: ids from 0 to 3; .*0\.\.2"),
        ({"ids": torch.tensor([[0]])}, r"ids: \(1, 1\); expected \(B,\)"),
        ({"seed": torch.tensor([1])}, r"seed: \(1,\); expected \(\)"),
        ({"step": torch.tensor(1.0)}, "step: torch.float32; pass an int64"),
        ({"joints": torch.zeros(19, 5, 3)}, r"skeleton.flip: \(4,\); expected \(V,\)"),
        ({"impl": "fast"}, "impl: 'fast'; choose one of auto, triton, cpu, torch"),
    ],
    spoils=_store.SPOILS
    | KEYS
    | {"skeleton.flip": TABLE, "skeleton.parents": TABLE, "impl": WRONG_CHOICE},
    uses=[use],
    learns=False,
    launches={
        f"augment-{name}-{str(dtype)[6:]}": launch(a, dtype, 17 if name == "odd" else 25)
        for name, a in SETTINGS.items()
        for dtype in (torch.float16, torch.float32)
    },
    # An interpreted launch takes a second.
    fuzz=Fuzz(random_call, examples=60, interpreted=6),
    in_cpp=True,
)
