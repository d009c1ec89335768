"""Visible tokens at their places in the grid and the mask token at all others."""

from __future__ import annotations

import torch
from torch import Tensor

from sjepa_kernels import scatter_mask_tokens
from tests.kernels.cases import Place
from tests.kernels.fuzzing import Draw
from tests.kernels.op_case import Arguments, Fuzz, OpCase, Use
from tests.kernels.ops import _tokens
from tests.kernels.spoils import IDS


def arguments() -> Arguments:
    return {name: x for name, x in _tokens.arguments().items() if name != "ids_mask"}


def use(place: Place, dtype: torch.dtype, small: bool) -> Use:
    def scatter(x: Tensor, m: Tensor, t: Tensor, s: Tensor, keep: Tensor, _: Tensor) -> Tensor:
        return scatter_mask_tokens(x, m, keep, t, s, impl=place.impl)

    return _tokens.use(scatter, place, dtype, small)


def random_call(draw: Draw) -> None:
    of = _tokens.RandomTokens(draw)
    keep = draw.ids((of.batch, of.kept), of.tokens, distinct=True)
    visible, mask_token, *tables = of.leaves
    out = scatter_mask_tokens(visible, mask_token, keep, *tables, impl=draw.impl)
    hit = (keep[:, :, None] == torch.arange(of.tokens, device=keep.device)).double()
    content = torch.einsum("bkn,bkd->bnd", hit, of.exact[0])
    of.check(out, content + (1 - hit.sum(1))[:, :, None] * of.exact[1] + of.position)


CASE = OpCase(
    op=scatter_mask_tokens,
    tests=["test_tokens.py"],
    arguments=arguments,
    says=_tokens.SAYS,
    spoils=_tokens.SPOILS | {"ids_keep": IDS | {"one twice": lambda x: x[:, [0, 1, 2, 1]]}},
    uses=[use],
    launches=_tokens.launches("scatter"),
    fuzz=Fuzz(random_call, examples=40, interpreted=20),
)
