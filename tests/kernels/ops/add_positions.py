"""Tokens with their positions added."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sjepa_kernels import add_positions
from tests.kernels.cases import Place, leaves_of, meta
from tests.kernels.fuzzing import Draw
from tests.kernels.op_case import Arguments, Fuzz, Launch, OpCase, Use
from tests.kernels.ops import _tokens

HALF, FULL = torch.bfloat16, torch.float32


def arguments() -> Arguments:
    unknown = ("mask_token", "ids_mask")
    return {name: x for name, x in _tokens.arguments().items() if name not in unknown}


def use(place: Place, dtype: torch.dtype, small: bool) -> Use:
    segments, joints, width, kept = (2, 3, 4, 3) if small else (5, 37, 300, 70)
    shapes = (2, kept, width), (segments, width), (joints, width)
    ids = torch.randint(segments * joints, (2, kept), device=place.device)

    def call(x: Tensor, temporal: Tensor, spatial: Tensor, ids: Tensor) -> Tensor:
        return add_positions(x, ids, temporal, spatial, impl=place.impl)

    return Use(call, [*leaves_of(place, *shapes, dtype=dtype), ids])


def launch(dtype: torch.dtype, odd: bool) -> Launch:
    batch, segments, joints, width, kept = (3, 7, 25, 100, 17) if odd else (256, 30, 25, 256, 75)

    def run(module: Any) -> None:
        x, out = meta(batch, kept, width, dtype=dtype), meta(batch, kept, width)
        ids = meta(batch, kept, dtype=torch.int64)
        tables = [meta(n, width) for n in (segments, joints)]
        module.write_packed(out, x, x, ids, ids[:, :0], *tables)
        module._sums(out, ids, ids[:, :0], segments, joints)

    return "tokens.pack", run


def random_call(draw: Draw) -> None:
    """Also ids that repeat."""
    of = _tokens.RandomTokens(draw)
    kept = of.kept if of.tokens else 0
    ids = draw.ids((of.batch, kept), of.tokens)
    leaves, exact = (of.leaves[:1] + of.leaves[2:], of.exact[:1] + of.exact[2:])
    of.leaves, of.exact = leaves, exact
    of.check(
        add_positions(leaves[0], ids, *leaves[1:], impl=draw.impl),
        exact[0] + of.position[ids.long()],
    )


CASE = OpCase(
    op=add_positions,
    tests=["test_add_positions.py"],
    arguments=arguments,
    says=[says for says in _tokens.SAYS if "mask_token" not in says[0]],
    spoils={k: ways for k, ways in _tokens.SPOILS.items() if k != "mask_token"},
    uses=[use],
    launches={
        f"add_positions-{label}{'-odd' * odd}": launch(dtype, odd)
        for label, dtype in (("bf16", HALF), ("fp32", FULL))
        for odd in (False, True)
    },
    fuzz=Fuzz(random_call, examples=40, interpreted=20),
)
