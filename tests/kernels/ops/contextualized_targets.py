"""The mean of normalised layers, at the masked tokens."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from sjepa_kernels import ContextualizedTargets, accumulate_normalized_
from tests.kernels.cases import Place, meta
from tests.kernels.fuzzing import HALVES, Draw, assert_norms_close, spread_of
from tests.kernels.op_case import Arguments, Fuzz, Launch, OpCase, Use
from tests.kernels.spoils import IDS, NOT_FLOATS, SHAPES, WRONG_CHOICE, without

NORMS = ["instance", "layer", "none"]


def arguments() -> Arguments:
    return {
        "layers": 2,
        "hidden": torch.randn(2, 3, 4),
        "ids_mask": torch.tensor([[0, 2], [1, 0]]),
        "norm": "layer",
        "impl": "auto",
    }


def calls(a: Arguments) -> object:
    averaged = ContextualizedTargets(a["layers"], a["norm"], impl=a["impl"])
    for _ in range(a["layers"]):
        averaged.add_(a["hidden"])
    return averaged.finish(a["ids_mask"])


def use(norm: str, place: Place, dtype: torch.dtype, small: bool) -> Use:
    batch, tokens, width, masked = (2, 7, 6, 3) if small else (3, 40, 70, 11)
    hidden = [torch.randn(batch, tokens, width).to(place.device, dtype) for _ in range(2)]
    ids = torch.randint(tokens, (batch, masked)).to(place.device)

    def targets(first: Tensor, second: Tensor, ids: Tensor) -> list[Tensor]:
        mean, found = ContextualizedTargets(2, norm, impl=place.impl), []
        for chosen in (ids, None):
            mean.add_(first)
            mean.add_(second)
            found.append(mean.finish(chosen))
        return found

    return Use(targets, [*hidden, ids])


def launch(shape: tuple[int, int, int], masked: int, dtype: torch.dtype, norm: str) -> Launch:
    def run(module: Any) -> None:
        total, ids = meta(*shape), meta(shape[0], masked, dtype=torch.int64)
        module._accumulate(total, meta(*shape, dtype=dtype), meta(), norm)
        module._finish(total, ids, True)
        module._finish(total, None, norm == "layer")

    return "targets", run


LAUNCHES = {
    f"targets-{norm}-{batch}x{tokens}x{width}-{str(dtype)[6:]}{'-odd' * (width % 16 > 0)}": launch(
        (batch, tokens, width), masked, dtype, norm
    )
    for batch, tokens, width, masked in (
        (512, 750, 256, 690),
        (64, 196, 1024, 98),
        (2, 16, 8192, 8),
        (3, 77, 100, 5),
    )
    for dtype in (torch.bfloat16, torch.float32)
    for norm in NORMS
}


def random_call(draw: Draw) -> None:
    """Layers of different dtypes, any tokens of any sequence, then a total with a weight."""
    batch, tokens, layers = draw.size(), draw.size(), draw.size(1, 3)
    width, norm = draw.one_of(1, 2, 5, 33, 70), draw.one_of(*NORMS)
    # A LayerNorm of one channel, or of zeros, is all rounding.
    final = width > 2 and not (norm == "instance" and tokens < 2) and draw.flag()
    dtypes = [torch.float64] if draw.flag() else [torch.float32, *HALVES]
    hidden = [draw.normal((batch, tokens, width), draw.one_of(*dtypes)) for _ in range(layers)]
    masked = draw.size(0, tokens + 1) if tokens else 0
    ids = None
    if draw.flag():
        ids = draw.ids((batch, masked), tokens)
    ours = ContextualizedTargets(layers, norm, final_norm=final, impl=draw.impl)
    for x in hidden:
        ours.add_(x)
    got = ours.finish(ids)
    axes = {"instance": 1, "layer": 2}
    normed = [x.double() for x in hidden]
    spread = 1.0
    if norm in axes and batch * tokens * width:
        spread = max(spread_of(x, axes[norm]) for x in normed)
        normed = [
            (x - x.mean(axes[norm], keepdim=True))
            / (x.var(axes[norm], correction=0, keepdim=True) + 1e-5).sqrt()
            for x in normed
        ]
    mean = torch.stack(normed).mean(0)
    truth = layer_norm(mean, (width,)) if final else mean
    if ids is not None:
        truth = truth[torch.arange(batch, device=truth.device)[:, None], ids.long()]
    wide = torch.float64 if dtypes == [torch.float64] else torch.float32
    assert got.dtype == wide
    eps = torch.finfo(wide).eps
    assert_norms_close([got], [truth], eps, spread * spread_of(mean, -1) if final else spread)
    weight = draw.one_of(0.25, -2.0, torch.tensor(0.5, device=draw.device))
    total = torch.randn(batch, tokens, width).to(draw.device, wide)
    expected = total.double() + float(weight) * normed[0]
    accumulate_normalized_(total, hidden[0], weight, norm=norm, impl=draw.impl)
    assert_norms_close([total], [expected], eps, spread)


CASE = OpCase(
    op=ContextualizedTargets,
    tests=["test_targets.py"],
    arguments=arguments,
    calls=calls,
    says=[
        ({"ids_mask": torch.zeros(2, 2)}, "ids_mask: torch.float32"),
        ({"ids_mask": torch.zeros(3, 2).long()}, r"ids_mask: \(3, 2\)"),
        ({"ids_mask": torch.tensor([[0], [3]])}, r"ids_mask: ids from 0 to 3"),
        ({"layers": 0}, r"layers: 0; .*at least 1"),
        ({"norm": "batch"}, "norm: 'batch'"),
        ({"hidden": torch.zeros(2, 3, 0)}, r"hidden: \(2, 3, 0\); .*D at least 1"),
    ],
    spoils={
        "layers": [0, -1],
        "hidden": {"one axis": SHAPES["one axis"], "no axes": SHAPES["no axes"]} | NOT_FLOATS,
        "ids_mask": without(IDS, "wider", "narrower"),
        "norm": ["", "batch"],
        "impl": WRONG_CHOICE,
    },
    uses=[partial(use, norm) for norm in NORMS],
    learns=False,
    launches=LAUNCHES,
    fuzz=Fuzz(random_call),
)
