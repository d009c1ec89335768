"""The mask ops against their definitions in float64, in every implementation that runs here."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sjepa_kernels import TokenMask, motion_aware_mask, philox4x32, random_mask, tube_mask
from sjepa_kernels._triton import tl, triton
from sjepa_kernels.masks import tokens as masks_module
from sjepa_kernels.masks import tubes as tube_module
from sjepa_kernels.masks.shared import keep_smallest, ordered_bits, split_smallest
from sjepa_kernels.masks.tokens import motion_keys
from tests.kernels.cases import Place

SEED, STEP, PURPOSE = -(1 << 40) - 9, 7, 5
KINDS = ["motion", "random", "tube"]
# C, M, S, V, P, kept: odd sizes, no and all tokens visible, single everything, draws that start
# between two counters, tokens whose numbers load one, two and four at once.
SHAPES = [
    (2, 2, 3, 5, 9, 4),
    (1, 1, 1, 1, 1, 1),
    (2, 1, 4, 25, 12, 10),
    (1, 3, 2, 7, 6, 0),
    (1, 1, 6, 3, 3, 18),
    (2, 1, 2, 33, 2, 65),
]


def clip_ids(clips: int, device: str = "cpu") -> Tensor:
    return torch.arange(clips, device=device) * 1000 + 3


def tubelets_of(shape: tuple[int, ...], device: str = "cpu") -> Tensor:
    clips, bodies, segments, joints, size, _ = shape
    return torch.randn(clips * bodies, segments * joints, size).to(device)


def draw(kind: str, shape: tuple[int, ...], tubelets: Tensor, impl: str, **other: Any) -> TokenMask:
    """Call the op of a kind; tubes are as long as the clip, and keep what fits in their joints."""
    clips, bodies, segments, joints, size, kept = shape
    device = str(tubelets.device)
    seed = torch.tensor(SEED, device=device)
    options = {
        "step": torch.tensor(STEP, device=device),
        "clip_ids_C": clip_ids(clips, device),
        "bodies": bodies,
        "purpose": PURPOSE,
        "impl": impl,
    } | other
    seed = options.pop("seed", seed)
    if kind == "random":
        return random_mask(clips * bodies, segments * joints, kept, seed, **options)
    if kind == "motion":
        return motion_aware_mask(tubelets, kept, seed, joints=joints, **options)
    return tube_mask(
        tubelets,
        min(kept, joints),
        seed,
        joints=joints,
        tube_length=2 if segments == 4 else segments,
        coords=3 if size % 3 == 0 else 1,
        **options,
    )


def uniform_of(clip: int, body: int, count: int, n: int) -> float:
    i = body * count + n
    words = philox4x32(torch.tensor(SEED), i // 4, 1000 * clip + 3, STEP, PURPOSE)
    return (int(words[i % 4]) >> 8) / 2**24


def keys_by_definition(kind: str, shape: tuple[int, ...], x: np.ndarray) -> np.ndarray:
    """Keys of every sequence, (B, groups, keys a group), token by token as the method has them."""
    clips, bodies, segments, joints, size, _ = shape
    grid = x.astype(np.float64).reshape(clips * bodies, segments, joints, size)
    length = 2 if segments == 4 else segments
    groups, count = (segments // length, joints) if kind == "tube" else (1, segments * joints)
    u = np.array(
        [
            [uniform_of(c, m, groups * count, n) for n in range(groups * count)]
            for c in range(clips)
            for m in range(bodies)
        ]
    ).reshape(clips * bodies, groups, count)
    if kind == "random":
        return u
    if kind == "motion":
        motion = np.zeros((clips * bodies, segments, joints))
        for s in range(1, segments):
            motion[:, s] = np.abs(grid[:, s] - grid[:, s - 1]).mean(axis=-1)
        if segments > 1:
            motion[:, 0] = motion[:, 1]
        motion = motion.reshape(u.shape)
        scaled = motion / (motion.max(axis=2, keepdims=True) * 0.8 + 1e-10)
        log_p = scaled - np.log(np.exp(scaled).sum(axis=2, keepdims=True))
        return log_p - np.log(-np.log(u + 1e-10) + 1e-10)
    coords = 3 if size % 3 == 0 else 1
    frames = grid.reshape(clips * bodies, segments, joints, -1, coords)
    frames = np.moveaxis(frames, 3, 2).reshape(clips * bodies, -1, joints, coords)
    change = np.abs(np.diff(frames, axis=1, append=frames[:, -1:])).mean(axis=-1)
    motion = change.reshape(clips * bodies, groups, -1, joints).mean(axis=2)
    return u + 0.1 * motion / (motion.max(axis=2, keepdims=True) + 1e-6)


def visible_by_definition(kind: str, shape: tuple[int, ...], x: np.ndarray) -> np.ndarray:
    _, _, segments, joints, _, kept = shape
    keys = keys_by_definition(kind, shape, x)
    if kind == "tube":
        kept = min(kept, joints)
    order = np.argsort(keys, axis=2, kind="stable")
    visible = np.zeros(keys.shape, dtype=bool)
    np.put_along_axis(visible, order[:, :, :kept], True, axis=2)
    if kind == "tube":
        visible = np.repeat(visible, segments // visible.shape[1], axis=1)
    return visible.reshape(len(keys), segments * joints)


def assert_mask(mask: TokenMask, visible: np.ndarray) -> None:
    """All three tensors are what follows from the visible tokens."""
    assert all(x.dtype == torch.int32 and x.is_contiguous() for x in mask)
    for b, row in enumerate(visible):
        keep, hide = np.flatnonzero(row), np.flatnonzero(~row)
        assert mask.ids_keep_BK[b].tolist() == keep.tolist()
        assert mask.ids_mask_BQ[b].tolist() == hide.tolist()
        order = np.concatenate([keep, hide])
        assert mask.ids_restore_BN[b].tolist() == np.argsort(order).tolist()
    assert (
        len(mask.ids_keep_BK) == len(mask.ids_mask_BQ) == len(mask.ids_restore_BN) == len(visible)
    )


def assert_equal(first: TokenMask, second: TokenMask) -> None:
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mask_follows_its_definition(
    place: Place, kind: str, shape: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a kernel does not write shows as an id that no token has.
    for module in (masks_module, tube_module):
        empty = module.empty_mask
        poisoned = lambda *args, e=empty: tuple(x.fill_(-77) for x in e(*args))  # noqa: E731
        monkeypatch.setattr(module, "empty_mask", poisoned)
    x = tubelets_of(shape, place.device)
    expected = visible_by_definition(kind, shape, x.cpu().numpy())
    assert_mask(draw(kind, shape, x, place.impl), expected)


@pytest.mark.parametrize("kind", ["motion", "tube"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(place: Place, kind: str, dtype: torch.dtype) -> None:
    shape = (1, 1, 4, 9, 12, 8)
    x = tubelets_of(shape, place.device).to(dtype)
    expected = visible_by_definition(kind, shape, x.double().cpu().numpy())
    assert_mask(draw(kind, shape, x, place.impl), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_strided_inputs(place: Place, kind: str) -> None:
    shape = (2, 1, 4, 5, 6, 3)
    x = tubelets_of(shape, place.device)
    apart = x.transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    ids = torch.stack([clip_ids(2), clip_ids(2)], dim=1).to(place.device)[:, 0]
    assert not apart.is_contiguous() and not ids.is_contiguous()
    same = draw(kind, shape, apart, place.impl, clip_ids_C=ids, step=STEP)
    assert_equal(same, draw(kind, shape, x, place.impl))
    assert_equal(same, draw(kind, shape, x, place.impl, clip_ids_C=ids.int()))


@pytest.mark.parametrize("kind", KINDS)
def test_draws_depend_on_their_keys_and_not_on_the_batch(place: Place, kind: str) -> None:
    shape = (3, 2, 4, 7, 3, 3)
    x = tubelets_of(shape, place.device)
    whole = draw(kind, shape, x, place.impl)
    assert_equal(whole, draw(kind, shape, x, place.impl))
    last = draw(kind, (1, *shape[1:]), x[4:], place.impl, clip_ids_C=clip_ids(3, place.device)[2:])
    assert_equal(last, TokenMask(*(t[4:] for t in whole)))
    still = torch.zeros_like(x)
    rows = {tuple(row.tolist()) for row in draw(kind, shape, still, place.impl).ids_keep_BK}
    assert len(rows) == 6
    seed = torch.tensor(SEED + (1 << 32), device=place.device)
    for other in ({"step": STEP + 1}, {"purpose": PURPOSE + 1}, {"seed": seed}):
        changed = draw(kind, shape, x, place.impl, **other)
        assert not torch.equal(changed.ids_keep_BK, whole.ids_keep_BK), other


def test_a_seed_and_a_batch_are_enough(place: Place) -> None:
    x, seed = torch.randn(2, 12, 3).to(place.device), torch.tensor(4, device=place.device)
    plain = motion_aware_mask(x, 5, seed, joints=4, impl=place.impl)
    ids = torch.arange(2, device=place.device)
    full = motion_aware_mask(
        x, 5, seed, joints=4, tau=0.8, step=0, clip_ids_C=ids, bodies=1, purpose=0, impl=place.impl
    )
    assert_equal(plain, full)
    heat = torch.tensor(0.05, device=place.device)
    hot = motion_aware_mask(x, 5, seed, joints=4, tau=heat, impl=place.impl)
    assert_equal(hot, motion_aware_mask(x, 5, seed, joints=4, tau=0.05, impl=place.impl))
    assert not torch.equal(hot.ids_keep_BK, plain.ids_keep_BK)


def test_without_motion_the_draw_alone_decides(place: Place) -> None:
    shape = (2, 1, 3, 10, 3, 9)
    still = torch.ones(2, 30, 3, device=place.device)
    uniform = draw("random", shape, still, place.impl)
    assert_equal(draw("motion", shape, still, place.impl), uniform)
    single = (2, 1, 1, 30, 3, 9)
    moving = tubelets_of(single, place.device)
    assert_equal(draw("motion", single, moving, place.impl), uniform)
    assert_equal(draw("tube", single, moving, place.impl, scale=0.0), uniform)


@pytest.mark.parametrize("kind", ["motion", "tube"])
def test_nan_comes_last_and_equal_keys_go_by_id(place: Place, kind: str) -> None:
    shape = (1, 2, 2, 6, 3, 4)
    x = tubelets_of(shape, place.device)
    sound = draw(kind, shape, x, place.impl)
    x[0, 7, 1] = float("nan")
    mask = draw(kind, shape, x, place.impl)
    first = [0, 1, 2, 3] if kind == "motion" else [0, 1, 2, 3, 6, 7, 8, 9]
    assert mask.ids_keep_BK[0].tolist() == first
    assert_equal(TokenMask(*(t[1:] for t in mask)), TokenMask(*(t[1:] for t in sound)))


def test_reference_breaks_ties_by_id() -> None:
    keys = torch.tensor([[2, 1, 2, 0, 2, 1], [3, 3, 3, 3, 3, 3]])
    mask = split_smallest(keys, 4)
    assert mask.ids_keep_BK.tolist() == [[0, 1, 3, 5], [0, 1, 2, 3]]
    assert mask.ids_mask_BQ.tolist() == [[2, 4], [4, 5]]
    assert mask.ids_restore_BN.tolist() == [[0, 1, 4, 2, 5, 3], [0, 1, 2, 3, 4, 5]]


@triton.jit
def _select_kernel(keys, flags, N, K, BITS: tl.constexpr, FLOAT: tl.constexpr, BN: tl.constexpr):
    n = tl.arange(0, BN)
    if FLOAT:
        order = ordered_bits(tl.load(keys + n, mask=n < N, other=0.0))
    else:
        order = tl.load(keys + n, mask=n < N, other=0).to(tl.uint32)
    keep, seen = keep_smallest(order, n < N, K, BITS)
    tl.store(flags + n, tl.where(keep, seen, 0), mask=n < N)


def test_selection_in_a_kernel_sorts_like_torch(place: Place) -> None:
    if place.impl != "triton":
        pytest.skip("the selection runs inside Triton kernels")
    special = [0.0, -1.5, float("inf"), float("-inf"), float("nan"), 1e-40, -3.0, 0.25, 0.25, 2.0]
    few = torch.tensor(special * 2 + [0.25], device=place.device)
    ends = torch.tensor([0, (1 << 24) - 1, 5, 5, (1 << 24) - 1, 4, 5], device=place.device)
    for keys, bits in ((few, 32), (ends, 24)):
        floating = keys.dtype.is_floating_point
        for keep in range(len(keys) + 1):
            flags = torch.full((len(keys),), -1, dtype=torch.int32, device=place.device)
            _select_kernel[(1,)](keys, flags, len(keys), keep, BITS=bits, FLOAT=floating, BN=32)
            chosen = keys.argsort(stable=True)[:keep].sort().values
            assert flags.nonzero().flatten().tolist() == chosen.tolist(), keep
            assert flags[chosen].tolist() == list(range(1, keep + 1))


@pytest.mark.parametrize("kept", [0, 1, 409, 4095, 4096])
def test_the_most_tokens(place: Place, kept: int) -> None:
    x = torch.randn(1, 4096, 1).to(place.device)
    seed = torch.tensor(1, device=place.device)
    mask = motion_aware_mask(x, kept, seed, joints=32, impl=place.impl)
    expected = motion_aware_mask(x, kept, seed, joints=32, impl="torch")
    assert_equal(mask, expected)
    both = torch.cat([mask.ids_keep_BK, mask.ids_mask_BQ], dim=1)
    assert torch.equal(both.sort(dim=1).values[0].cpu(), torch.arange(4096, dtype=torch.int32))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bodies", [1, 2])
def test_empty_batch(place: Place, kind: str, bodies: int) -> None:
    for kept in (0, 3):
        shape = (0, bodies, 2, 4, 3, kept)
        mask = draw(kind, shape, tubelets_of(shape, place.device), place.impl)
        columns = 2 * kept if kind == "tube" else kept
        assert [tuple(x.shape) for x in mask] == [(0, columns), (0, 8 - columns), (0, 8)]
        assert all(x.dtype == torch.int32 for x in mask)


def test_keys_are_as_close_to_float64_as_promised() -> None:
    x = torch.randn(40, 750, 12) * torch.rand(40, 750, 1)
    words = torch.randint(1 << 32, (40, 750))
    words[:, 0], words[:, 1] = 0, (1 << 32) - 1
    grid = x.double().view(40, 30, 25, 12)
    change = grid.diff(dim=1).abs().mean(dim=-1)
    motion = torch.cat([change[:, :1], change], dim=1).flatten(1)
    # Every implementation rounds this sum alike; near 1 it is what float32 can hold that decides.
    uniform = ((words >> 8).float() / 2**24 + 1e-10).double()
    exact = motion / (motion.amax(dim=1, keepdim=True) * 0.8 + 1e-10)
    exact -= torch.log(-torch.log(uniform) + 1e-10)
    keys = motion_keys(x, words, 25, 0.8)
    assert keys.dtype == torch.float32
    assert (keys - exact).abs().max() < 2e-6


def test_visibility_by_motion_matches_the_simulated_oracle() -> None:
    # Method 3.4: tau 0.8, exponential motion, 74 of 750: calmest decile 13.5 %, fastest 3.3 %.
    motion = torch.empty(2000, 30, 25).exponential_()
    motion[:, 0] = motion[:, 1]
    signs = 1 - 2.0 * (torch.arange(30) % 2)[:, None]
    # Tokens whose change against the segment before is the wanted motion.
    x = (motion * signs).cumsum(dim=1).flatten(1)[..., None]
    mask = motion_aware_mask(x, 74, torch.tensor(0), joints=25, impl="torch")
    visible = torch.zeros(2000, 750).scatter(1, mask.ids_keep_BK.long(), 1.0)
    by_motion = visible.gather(1, motion.flatten(1).argsort(dim=1))
    assert by_motion[:, :75].mean().item() == pytest.approx(0.135, abs=0.003)
    assert by_motion[:, -75:].mean().item() == pytest.approx(0.033, abs=0.002)
    assert mask.ids_keep_BK.shape == (2000, 74)
    even = random_mask(2000, 750, 75, torch.tensor(0), impl="torch")
    share = torch.zeros(2000, 750).scatter(1, even.ids_keep_BK.long(), 1.0).mean(dim=0)
    # Standard error of one token over 2,000 sequences: 0.67 points.
    assert (share - 0.1).abs().max() < 0.03


@pytest.mark.parametrize(
    ("scale", "calm", "fast"), [(0.1, 0.099, 0.020), (0.2, 0.135, 0.004), (0.0, 0.08, 0.08)]
)
def test_tube_visibility_matches_the_simulated_oracle(
    scale: float, calm: float, fast: float
) -> None:
    # Method 4.1: 2 of 25 joints a tube. The method rounds a simulation and does not name its
    # motion; with exponential motion the rates lie within a point of it (half a point, fastest).
    batch = 20000
    motion = torch.empty(batch, 1, 25, 1).exponential_()
    x = torch.cat([torch.zeros_like(motion), motion], dim=1).flatten(1, 2)
    keep = partial(tube_mask, joints=25, tube_length=2, coords=1, scale=scale, impl="torch")
    mask = keep(x, int(25 * (1 - 0.9)), torch.tensor(0))
    assert mask.ids_keep_BK.shape == (batch, 4)
    visible = torch.zeros(batch, 50).scatter(1, mask.ids_keep_BK.long(), 1.0).view(batch, 2, 25)
    assert torch.equal(visible[:, 0], visible[:, 1])
    order = motion.flatten(1).argsort(dim=1)
    rates = visible[:, 0].gather(1, order).mean(dim=0)
    assert rates[0].item() == pytest.approx(calm, abs=0.01)
    assert rates[-1].item() == pytest.approx(fast, abs=0.005)
