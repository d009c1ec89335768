"""Multi-block masks of images and video."""

from __future__ import annotations

import torch
from torch import Tensor

from sjepa_kernels import BlockMask, block_mask
from tests.kernels.cases import Place
from tests.kernels.fuzzing import Draw
from tests.kernels.op_case import Fuzz, Launch, OpCase, Use
from tests.kernels.ops import _masks
from tests.kernels.ops._blocks import by_definition, compare


def use(place: Place, dtype: torch.dtype, small: bool) -> Use:
    grid = (2, 4, 3) if small else (3, 5, 6)
    whole = [torch.randint(99, shape).to(place.device) for shape in ((), (), (2,))]

    def mask(seed: Tensor, step: Tensor, ids: Tensor) -> BlockMask:
        options = {"clip_ids_C": ids, "bodies": 2, "purpose": 5, "impl": place.impl}
        return block_mask(
            4, grid, 5, seed, target=(1, 2, 2), targets=2, context=(2, 3, 3), step=step, **options
        )

    return Use(mask, whole)


def launch(grid: list[int], target: list[int], targets: int) -> Launch:
    draws = _masks.meta_draws()
    return "masks.blocks", lambda module: module._block_mask(
        60, grid, grid, target, targets, *draws, bodies=1, purpose=2
    )


def random_call(draw: Draw) -> None:
    grid = tuple(draw.size(1, 5) for _ in range(draw.size(2, 3)))
    sizes = [tuple(draw.size(1, n) for n in grid) for _ in range(2)]
    tokens = torch.Size(grid).numel()
    clips, bodies, targets, keep = (
        draw.size(0, 2),
        draw.size(1, 2),
        draw.size(1, 3),
        draw.size(0, tokens),
    )
    seed, step, purpose = draw.int64(), draw.int64(), draw.size(0, 5)
    ids = draw.ids((1, clips), 2**31)[0]
    mask = block_mask(
        clips * bodies,
        grid,
        keep,
        torch.tensor(seed, device=draw.device),
        target=sizes[0],
        targets=targets,
        context=sizes[1],
        step=step,
        clip_ids_C=ids,
        bodies=bodies,
        purpose=purpose,
        impl=draw.impl,
    )
    counters = [(clip, body) for clip in ids.tolist() for body in range(bodies)]
    truth = by_definition(
        grid, keep, (sizes[1], sizes[0], targets), (seed, step, purpose), counters
    )
    compare(mask, truth)


CASE = OpCase(
    op=block_mask,
    tests=["test_block_masks.py"],
    arguments=lambda: _masks.arguments(
        batch=4, grid=(3, 4), target=(2, 2), targets=2, context=(3, 3)
    ),
    says=[
        *_masks.SAYS,
        ({"grid": (3,)}, r"grid: \(3,\); expected \(H, W\) or \(T, H, W\)"),
        ({"grid": (80, 80)}, "grid: 6400 tokens; pass 1 to 4096"),
        ({"target": (4, 2)}, r"target: \(4, 2\); expected a block .* fits in \(3, 4\)"),
        ({"context": (1, 3, 3)}, r"context: \(1, 3, 3\); expected a block"),
        ({"targets": 0}, "targets: 0; draw 1 to 32 blocks"),
    ],
    spoils=_masks.SPOILS
    | {
        "batch": [-2, 3],
        "grid": [(), (3,), (0, 4), (1, 2, 3, 4), (80, 80)],
        "target": [(2,), (0, 2), (4, 2), (1, 2, 2)],
        "targets": [0, -1, 33],
        "context": [(2,), (0, 2), (3, 5), (1, 2, 2)],
    },
    uses=[use],
    learns=False,
    # Nothing wide to load: the kernel reads no tensor.
    launches={
        "block-mask-image-narrow": launch([1, 14, 14], [1, 6, 6], 4),
        "block-mask-video-narrow": launch([8, 14, 14], [8, 6, 5], 8),
    },
    fuzz=Fuzz(random_call, examples=30, interpreted=10),
)
