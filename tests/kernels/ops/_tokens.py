"""What the files of `pack_tokens` and `scatter_mask_tokens` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.kernels.cases import Place, leaves_of, meta
from tests.kernels.fuzzing import FLOATS, Draw, assert_all_rounded
from tests.kernels.op_case import Arguments, Launch, Use, normals
from tests.kernels.spoils import FLOAT, IDS, VECTOR, WRONG_CHOICE, Ways

SPOILS: dict[str, Ways] = {
    "visible": FLOAT,
    "mask_token": VECTOR,
    "position_temporal": FLOAT,
    "position_spatial": FLOAT,
    "ids_keep": IDS,
    "impl": WRONG_CHOICE,
}
SAYS: list[tuple[Arguments, str]] = [
    ({"visible": torch.zeros(2, 2)}, r"visible: \(2, 2\); expected \(B, K, D\)"),
    ({"mask_token": torch.zeros(4)}, r"mask_token: \(4,\); expected"),
    ({"mask_token": torch.zeros(5, dtype=torch.int32)}, "mask_token: torch.int32"),
    ({"ids_keep": torch.zeros(2, 3, dtype=torch.int64)}, r"ids_keep: \(2, 3\)"),
    ({"ids_keep": torch.zeros(2, 4)}, "ids_keep: torch.float32; pass an int32 or int64"),
    ({"ids_keep": torch.tensor([[0, 6, 1, 2]] * 2)}, r"ids_keep: .*must lie in 0\.\.5"),
    ({"position_spatial": torch.zeros(3, 4)}, r"position_spatial: \(3, 4\)"),
    ({"impl": "fast"}, "impl: 'fast'; choose one of auto, triton, cpu, torch"),
]


def arguments() -> Arguments:
    order = torch.stack([torch.randperm(6) for _ in range(2)])
    made = normals(
        visible=(2, 4, 5), mask_token=(5,), position_temporal=(2, 5), position_spatial=(3, 5)
    )
    return made | {"ids_keep": order[:, :4], "ids_mask": order[:, 4:], "impl": "auto"}


def use(op: Callable[..., Tensor], place: Place, dtype: torch.dtype, small: bool) -> Use:
    """Call `op` with tables, then with the ids of both; large, with a broken tile of each axis."""
    segments, joints, width, kept = (2, 3, 4, 3) if small else (5, 7, 300, 7)
    shapes = (2, kept, width), (width,), (segments, width), (joints, width)
    order = torch.stack([torch.randperm(segments * joints) for _ in range(2)]).to(place.device)
    return Use(op, [*leaves_of(place, *shapes, dtype=dtype), order[:, :kept], order[:, kept:]])


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
