"""The moving average of lists of parameters, as a plan or as one call."""

from __future__ import annotations

import torch
from torch import Tensor

from sjepa_kernels import EmaPlan, ema_update_
from sjepa_kernels._triton import compute_dtype
from tests.kernels.cases import Place, assert_within_budget
from tests.kernels.fuzzing import FLOATS, HALVES, Draw
from tests.kernels.op_case import Arguments, Fuzz, Launch, OpCase, Use, normals
from tests.kernels.spoils import FLOAT, WRONG_CHOICE, WRONG_SHARE


def arguments() -> Arguments:
    shadows = torch.randn(3, 4).half()
    made = normals(targets=(3, 4), sources=(3, 4))
    return made | {"shadows": shadows, "momentum": 0.9, "impl": "auto"}


def calls(a: Arguments) -> None:
    """The arguments are the second tensors of lists; a plan checks them in the same way."""
    targets, sources = [torch.ones(2), a["targets"]], [torch.ones(2), a["sources"]]
    shadows = [torch.ones(2).half(), a["shadows"]]
    if isinstance(a["momentum"], float):
        EmaPlan(targets, sources, shadows, impl=a["impl"]).update_(a["momentum"])
    ema_update_(targets, sources, a["momentum"], shadows=shadows, impl=a["impl"])


def use(place: Place, dtype: torch.dtype, small: bool) -> Use:
    """A plan with shadows and a call without, of an empty tensor and of a chunk and a bit."""
    shapes = [(3, 4), (0,), (5,) if small else (4099,)]
    tensors = [torch.randn(s).to(place.device, dtype) for s in shapes * 2]
    # The interpreter casts float64 to bfloat16 wrongly.
    half = torch.float16 if dtype == torch.float64 else torch.bfloat16

    def moved(*tensors: Tensor) -> list[Tensor]:
        targets, sources = [x.detach().clone() for x in tensors[:3]], list(tensors[3:])
        shadows = [torch.empty_like(x, dtype=half) for x in targets]
        momentum = torch.tensor(0.95, device=place.device)
        EmaPlan(targets, sources, shadows, impl=place.impl).update_(momentum)
        ema_update_(targets, sources, 0.5, impl=place.impl)
        return [*targets, *shadows]

    return Use(moved, tensors)


def launch(shadow: bool, aligned: bool) -> Launch:
    start = 0 if aligned else 1
    targets, sources = torch.zeros(2, 5000)[:, start:4096].unbind()
    shadows = [torch.zeros(5000, dtype=torch.bfloat16)[start:4096]] if shadow else []
    return "ema", lambda module: module._launch([targets], [sources], shadows, torch.zeros(()))


def random_call(draw: Draw) -> None:
    """Lists of any lengths and shapes, dense or not, as a plan or as one call, with shadows."""
    count = draw.size(0, 5)
    shapes = [draw.one_of((), (0,), (1,), (3, 5), (2, 1, 4), (4099,)) for _ in range(count)]
    halves = draw.flag()
    targets = [draw.normal(s, draw.one_of(*FLOATS[: 4 if halves else 2])) for s in shapes]
    targets = [t.contiguous() if 0 in t.stride() else t for t in targets]
    sources = [draw.normal(s, draw.one_of(*FLOATS)) for s in shapes]
    shadows = None
    if draw.flag():
        like = [draw.normal(s, draw.one_of(*HALVES)) for s in shapes]
        shadows = [s.clone() if 0 in s.stride() else s for s in like]
    momentum = draw.one_of(0.0, 0.3, 0.98, 1.0) if not halves else draw.one_of(0.0, 0.3, 0.98)
    passed = momentum
    if not halves and draw.flag():
        passed = torch.tensor(momentum, dtype=draw.one_of(*FLOATS[:2]), device=draw.device)
    weight = float(1 - passed)
    eager = [torch.lerp(t, s.to(t.dtype), weight) for t, s in zip(targets, sources, strict=True)]
    # For a half-precision target, the kernel alone does not round the source first.
    read = [compute_dtype(t.dtype) if draw.impl == "triton" else t.dtype for t in targets]
    truth = [
        (1 - weight) * t.double() + weight * s.to(dtype).double()
        for t, s, dtype in zip(targets, sources, read, strict=True)
    ]
    if draw.flag():
        EmaPlan(targets, sources, shadows, impl=draw.impl).update_(passed)
    else:
        ema_update_(targets, sources, passed, shadows=shadows, impl=draw.impl)
    for k, (ours, theirs, true) in enumerate(zip(targets, eager, truth, strict=True)):
        assert_within_budget(ours, theirs, true, f"tensor {k}")
        if shadows:
            # Of a half-precision target, the kernel rounds the number before its own rounding.
            slack = torch.finfo(ours.dtype).eps if ours.dtype in HALVES else 0.0
            eager_shadow = ours.to(shadows[k].dtype)
            assert_within_budget(shadows[k], eager_shadow, ours, f"shadow {k}", slack)


CASE = OpCase(
    op=ema_update_,
    tests=["test_ema.py"],
    arguments=arguments,
    calls=calls,
    spoils={
        "targets": FLOAT | {"expanded": lambda x: x[:1].expand(3, 4)},
        "sources": FLOAT,
        "shadows": FLOAT | {"wide": lambda x: x.float(), "expanded": lambda x: x[:1].expand(3, 4)},
        "momentum": WRONG_SHARE,
        "impl": WRONG_CHOICE,
    },
    uses=[use],
    learns=False,
    launches={
        f"ema{'-shadow' * shadow}{'' if aligned else '-unaligned'}": launch(shadow, aligned)
        for shadow in (False, True)
        for aligned in (False, True)
    },
    fuzz=Fuzz(random_call),
    in_cpp=True,
)
