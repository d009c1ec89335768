"""Visible and mask tokens one after the other, each with its position."""

from __future__ import annotations

import torch
from torch import Tensor

from sjepa_kernels import pack_tokens
from tests.kernels.cases import Place
from tests.kernels.fuzzing import Draw
from tests.kernels.op_case import Fuzz, OpCase, Use
from tests.kernels.ops import _tokens
from tests.kernels.spoils import IDS, without


def use(place: Place, dtype: torch.dtype, small: bool) -> Use:
    def pack(x: Tensor, m: Tensor, t: Tensor, s: Tensor, keep: Tensor, hide: Tensor) -> Tensor:
        return pack_tokens(x, m, keep, hide, t, s, impl=place.impl)

    return _tokens.use(pack, place, dtype, small)


def random_call(draw: Draw) -> None:
    """Also ids that repeat."""
    of = _tokens.RandomTokens(draw)
    masked = draw.size(0, of.tokens + 2) if of.tokens else 0
    keep = draw.ids((of.batch, of.kept), of.tokens)
    hide = draw.ids((of.batch, masked), of.tokens)
    visible, mask_token, *tables = of.leaves
    out = pack_tokens(visible, mask_token, keep, hide, *tables, impl=draw.impl)
    content = torch.cat([of.exact[0], of.exact[1].expand(of.batch, masked, of.width)], dim=1)
    of.check(out, content + of.position[torch.cat([keep.long(), hide.long()], dim=1)])


CASE = OpCase(
    op=pack_tokens,
    tests=["test_tokens.py"],
    arguments=_tokens.arguments,
    says=[*_tokens.SAYS, ({"ids_mask": torch.tensor([[-1], [0]])}, r"ids_mask: ids from -1")],
    spoils=_tokens.SPOILS | {"ids_mask": without(IDS, "wider", "narrower")},
    uses=[use],
    launches=_tokens.launches("pack"),
    fuzz=Fuzz(random_call, examples=40, interpreted=20),
)
