"""Mask selection against what it replaces: eager PyTorch with two argsorts, and the same compiled.

`pytest benchmarks/bench_masks.py --benchmark-only`; on a GPU where there is one, which adds the
Triton kernels. Each row checks its masks before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from benchmarks.conftest import COMPILES, Timed, value_checks
from benchmarks.reference.sampling import mask_from_keys
from sjepa_kernels import BlockMask, block_mask, motion_aware_mask, random_mask, tube_mask

pytestmark = COMPILES

ON_GPU = torch.cuda.is_available()
SEQUENCES, SEGMENTS, JOINTS, KEPT = (256 if ON_GPU else 32), 30, 25, 75
TOKENS = SEGMENTS * JOINTS
TRITON = pytest.param(
    "ours, Triton",
    marks=pytest.mark.skipif(not (ON_GPU and find_spec("triton")), reason="needs a GPU"),
)
VARIANTS = ["eager", "eager compiled", "ours, reference", TRITON]

# ids_keep, ids_restore and a third tensor: the mask as 0 and 1, or ids_mask.
Masks = tuple[Tensor, Tensor, Tensor]


def plain_motion(x_BNP: Tensor) -> Masks:
    """Motion-aware masks by two argsorts and a gather, drawn with torch's own generator."""
    grid = x_BNP.view(len(x_BNP), SEGMENTS, JOINTS, -1)
    motion = torch.zeros_like(grid)
    motion[:, 1:] = torch.abs(grid[:, 1:] - grid[:, :-1])
    motion[:, 0] = motion[:, 1]
    intensity = motion.mean(dim=-1).flatten(1)
    scaled = intensity / (intensity.max(dim=-1, keepdim=True).values * 0.8 + 1e-10)
    noise = -torch.log(-torch.log(torch.rand_like(scaled) + 1e-10) + 1e-10)
    return mask_from_keys(torch.log(torch.softmax(scaled, dim=-1)) + noise, KEPT)


def plain_random(x_BNP: Tensor) -> Masks:
    """Uniform masks the same way."""
    return mask_from_keys(torch.rand(x_BNP.shape[:2], device=x_BNP.device), KEPT)


def plain_tube(x_BNP: Tensor) -> Masks:
    """Tube masks of 5 segments, 2 joints visible, by two argsorts over joints."""
    frames = x_BNP.view(len(x_BNP), SEGMENTS, JOINTS, -1, 3).transpose(2, 3).flatten(1, 2)
    motion = torch.zeros_like(frames)
    motion[:, :-1] = frames[:, 1:] - frames[:, :-1]
    by_tube = motion.abs().view(len(x_BNP), SEGMENTS // 5, -1, JOINTS, 3).mean(dim=(2, 4))
    share = by_tube / (by_tube.max(dim=2, keepdim=True).values + 1e-6)
    keys = torch.rand_like(share) + 0.1 * share
    order = keys.argsort(dim=2)
    restore = order.argsort(dim=2).repeat_interleave(5, dim=1)
    keep = order[:, :, :2].repeat_interleave(5, dim=1)
    first = torch.arange(0, TOKENS, JOINTS, device=x_BNP.device)[:, None]
    return (keep + first).flatten(1), (restore + first).flatten(1), (restore >= 2).flatten(1)


def ours(kind: str, impl: str, x_BNP: Tensor, seed: Tensor, step: Tensor) -> Masks:
    if kind == "motion":
        mask = motion_aware_mask(x_BNP, KEPT, seed, joints=JOINTS, step=step, impl=impl)
    elif kind == "random":
        mask = random_mask(SEQUENCES, TOKENS, KEPT, seed, step=step, impl=impl)
    else:
        mask = tube_mask(x_BNP, 2, seed, joints=JOINTS, tube_length=5, step=step, impl=impl)
    return mask.ids_keep_BK, mask.ids_restore_BN, mask.ids_mask_BQ


def check(drawn: Masks, kind: str) -> None:
    """Ids are of distinct tokens, as many as asked for, and differ between sequences."""
    keep = drawn[0].sort(dim=1).values
    kept = 2 * SEGMENTS if kind == "tube" else KEPT
    assert keep.shape == (SEQUENCES, kept)
    assert int(keep.min()) >= 0 and int(keep.max()) < TOKENS
    assert (keep.diff(dim=1) > 0).all()
    assert len(keep.unique(dim=0)) == SEQUENCES


@pytest.mark.benchmark(group="masks")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["motion", "random", "tube"])
def test_mask(timed: Timed, device: torch.device, kind: str, variant: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(SEQUENCES, TOKENS, 9 if kind == "tube" else 12, device=device)
    seed, step = torch.tensor(0, device=device), torch.tensor(0, device=device)
    plain = {"motion": plain_motion, "random": plain_random, "tube": plain_tube}[kind]
    compiled = torch.compile(plain, dynamic=False)
    runs: dict[str, Callable[[], Masks]] = {
        "eager": lambda: plain(x),
        "eager compiled": lambda: compiled(x),
        "ours, reference": lambda: ours(kind, "torch", x, seed, step),
        "ours, Triton": lambda: ours(kind, "triton", x, seed, step),
    }
    run = runs[variant]
    drawn = run()
    with value_checks():
        check(drawn, kind)
    facts = {"kind": kind, "variant": variant, "sequences": SEQUENCES, "tokens": TOKENS}
    timed(run, dtype=x.dtype, rounds=15, warmup=5, **facts)


IMAGE, TARGET, CONTEXT = (14, 14), (6, 6), (13, 13)


def collated_blocks(device: torch.device) -> tuple[Tensor, Tensor]:
    """Blocks as the published collators make them: sample by sample on the host, then copied."""
    contexts, targets = [], []
    for _ in range(SEQUENCES):
        free = torch.ones(IMAGE, dtype=torch.int32)
        blocks = []
        for _ in range(4):
            block = torch.zeros(IMAGE, dtype=torch.int32)
            top, left = (int(torch.randint(0, 14 - n + 1, (1,))) for n in TARGET)
            block[top : top + TARGET[0], left : left + TARGET[1]] = 1
            free = free * (1 - block)
            blocks.append(block.flatten().nonzero().flatten())
        inside = torch.zeros(IMAGE, dtype=torch.int32)
        top, left = (int(torch.randint(0, 14 - n + 1, (1,))) for n in CONTEXT)
        inside[top : top + CONTEXT[0], left : left + CONTEXT[1]] = 1
        contexts.append((free * inside).flatten().nonzero().flatten())
        targets.append(torch.stack(blocks))
    kept = min(map(len, contexts))
    context = torch.stack([ids[:kept] for ids in contexts])
    return context.to(device), torch.stack(targets, dim=1).flatten(0, 1).to(device)


@pytest.mark.benchmark(group="masks")
@pytest.mark.parametrize("variant", ["collator", "ours, reference", TRITON])
def test_block_mask(timed: Timed, device: torch.device, variant: str) -> None:
    torch.manual_seed(0)
    seed = torch.tensor(0, device=device)

    def drawn(impl: str) -> BlockMask:
        sizes = {"target": TARGET, "context": CONTEXT}
        return block_mask(SEQUENCES, IMAGE, 30, seed, **sizes, impl=impl)

    runs: dict[str, Callable[[], tuple[Tensor, ...]]] = {
        "collator": lambda: collated_blocks(device),
        "ours, reference": lambda: drawn("torch"),
        "ours, Triton": lambda: drawn("triton"),
    }
    run = runs[variant]
    with value_checks():
        out = run()
        keep, targets = (out.ids_keep_BK, out.ids_target_PBU) if len(out) == 5 else out
        assert targets.shape == (4 * SEQUENCES, 36)
        hidden = targets.view(4, SEQUENCES, 36).transpose(0, 1).flatten(1)
        seen = (keep[:, :, None] == hidden[:, None]).any(dim=2)
        assert int(seen.sum()) == 0
    facts = {"kind": "blocks", "variant": variant, "sequences": SEQUENCES, "tokens": 196}
    timed(run, dtype=torch.float32, rounds=15, warmup=2, **facts)
