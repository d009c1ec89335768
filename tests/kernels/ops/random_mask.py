"""Tokens that stay visible at random."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from sjepa_kernels import TokenMask, random_mask
from tests.kernels.fuzzing import Draw
from tests.kernels.op_case import Fuzz, Launch, OpCase
from tests.kernels.ops import _masks


def call(x: Tensor, seed: Tensor, joints: int, **options: Any) -> TokenMask:
    return random_mask(len(x), x.shape[1], 6, seed, **options)


def launch(tokens: int) -> Launch:
    draws = _masks.meta_draws()
    return "masks.tokens", lambda module: module._random_mask(
        tokens, tokens // 10, *draws, bodies=2, purpose=2
    )


def random_call(draw: Draw) -> None:
    of = _masks.RandomGrid(draw, tubes=False)
    of.check(random_mask(of.batch, of.tokens, of.keep, of.seed, **of.options), of.uniform)


CASE = OpCase(
    op=random_mask,
    tests=["test_masks.py"],
    arguments=lambda: _masks.arguments(batch=4, tokens=6),
    says=[
        *_masks.SAYS,
        ({"tokens": 4097}, "tokens: 4097 tokens; pass 1 to 4096"),
    ],
    spoils=_masks.SPOILS | {"batch": [-2, 3], "tokens": [0, -1, 1, 4097]},
    uses=[partial(_masks.use, call)],
    learns=False,
    # Nothing wide to load: the kernel reads no tensor.
    launches={f"random-mask-{tokens}-narrow": launch(tokens) for tokens in (750, 4096)},
    fuzz=Fuzz(random_call, examples=27, interpreted=6),
)
