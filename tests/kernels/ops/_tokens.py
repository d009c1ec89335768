"""What the files of `pack_tokens` and `scatter_mask_tokens` share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.kernels.cases import Place, meta
from tests.kernels.fuzzing import FLOATS, Draw, assert_all_rounded
from tests.kernels.op_case import Arguments, Launch, normals
from tests.kernels.spoils import FLOAT, IDS, VECTOR, WRONG_CHOICE, Ways

SPOILS: dict[str, Ways] = {
    "visible": FLOAT,
    "mask_token": VECTOR,
    "position_temporal": FLOAT,
    "position_spatial": FLOAT,
    "ids_keep": IDS,
    "impl": WRONG_CHOICE,
}


def arguments() -> Arguments:
    order = torch.stack([torch.randperm(6) for _ in range(2)])
    made = normals(
        visible=(2, 4, 5), mask_token=(5,), position_temporal=(2, 5), position_spatial=(3, 5)
    )
    return made | {"ids_keep": order[:, :4], "ids_mask": order[:, 4:], "impl": "auto"}


def random_order(place: Place) -> Tensor:
    """Two permutations of 35 tokens."""
    return torch.stack([torch.randperm(35) for _ in range(2)]).to(place.device)


# Of 35 tokens 7 are visible: more than a tile of rows and of columns, and a broken tile of each.
SHAPES = (2, 7, 300), (300,), (5, 300), (7, 300)


def launch(name: str, dtype: torch.dtype, odd: bool) -> Launch:
    """Forward and backward of one of the two ops."""
    batch, segments, joints, width, kept = (3, 7, 25, 100, 17) if odd else (256, 30, 25, 256, 75)
    tokens, scatter = segments * joints, name == "scatter"
    ids = [meta(batch, n, dtype=torch.int64) for n in (kept, tokens - kept)]
    ids = ids[: 1 if scatter else 2]
    tables = [meta(n, width, dtype=dtype) for n in (segments, joints)]

    def run(module: Any) -> None:
        visible, mask_token = meta(batch, kept, width, dtype=dtype), meta(width, dtype=dtype)
        module._forward(visible, mask_token, *ids, *tables)
        sizes = (True, True) if scatter else (segments, joints)
        module._sums(meta(batch, tokens, width, dtype=dtype), *ids, *sizes)

    return f"tokens.{name}", run


def launches(name: str) -> dict[str, Launch]:
    return {
        f"{name}-{label}{'-odd' * odd}": launch(name, dtype, odd)
        for label, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))
        for odd in (False, True)
    }


class RandomTokens:
    """Visible tokens, a mask token and both tables: dtypes differ, any size may be 0."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.batch, segments, joints = draw.size(), draw.size(), draw.size()
        self.width, self.tokens = draw.one_of(0, 1, 3, 16, 33, 260), segments * joints
        self.kept = draw.size(0, self.tokens)
        shapes = [(self.batch, self.kept, self.width), (self.width,)]
        shapes += [(segments, self.width), (joints, self.width)]
        self.leaves = [draw.whole(s, draw.one_of(*FLOATS)).requires_grad_() for s in shapes]
        self.exact = [x.detach().double().requires_grad_() for x in self.leaves]
        self.position = (self.exact[2][:, None] + self.exact[3][None]).flatten(0, 1)

    def check(self, out: Tensor, truth: Tensor) -> None:
        grad = self.draw.whole(tuple(out.shape), out.dtype)
        assert_all_rounded(out, self.leaves, truth, self.exact, grad)
