"""A step of AdamW and what follows the weights, as one call with lists."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sjepa_kernels import adamw_ema_
from sjepa_kernels.optim.rows import Addresses, Numbers
from tests.kernels.cases import Place, assert_within_budget
from tests.kernels.fuzzing import HALVES, Draw, laid_out
from tests.kernels.op_case import Arguments, Fuzz, Launch, OpCase, Use, normals
from tests.kernels.spoils import (
    FLOAT,
    INF,
    NAN,
    NOT_FLOATS,
    PLACES,
    SHAPES,
    WRONG_CHOICE,
    WRONG_SHARE,
    casts,
    without,
)

LISTS = "params", "grads", "exp_avgs", "exp_avg_sqs", "targets", "shadows", "target_shadows"
WRONG_NUMBER: list[Any] = [-1.0, NAN, INF]
# Of a 0-dim tensor.
LONGER = without(SHAPES, "no axes", "wider", "narrower")
EXPANDED = {"expanded": lambda x: x[:1].expand(3, 4)}
LIKE_WEIGHT = FLOAT | EXPANDED | casts(torch.float64, torch.bfloat16)


def arguments() -> Arguments:
    made = normals(**dict.fromkeys(LISTS, (3, 4)))
    made["exp_avg_sqs"] = made["exp_avg_sqs"].square()
    made |= {name: made[name].half() for name in ("shadows", "target_shadows")}
    numbers = {"lr": torch.tensor(0.1), "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
    step = {"momentum": 0.9, "clip": torch.tensor(0.5), "skip": torch.zeros(()), "impl": "auto"}
    return made | {"steps": torch.zeros(())} | numbers | step


def calls(a: Arguments) -> None:
    """The arguments are the second tensors of lists."""
    first = arguments()
    lists = {name: [first[name], a[name]] for name in (*LISTS, "steps")}
    adamw_ema_(**{name: lists.get(name, value) for name, value in a.items()})


def formula(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, t: float, lr: float, decay: float
) -> list[Tensor]:
    """New weight and moments for betas of 0.9 and 0.99, in the dtype of the tensors."""
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
    p = p - lr * decay * p
    under = (v / (1 - 0.99**t)).sqrt() + 1e-8
    return [p - lr * (m / (1 - 0.9**t)) / under, m, v]


def use(place: Place, dtype: torch.dtype, small: bool) -> Use:
    """Of an empty tensor, a small one and a span and a bit, and one without gradient."""
    shapes = [(3, 4), (0,), (5,) if small else (4099,), (2, 3)]
    tensors = [torch.randn(s).to(place.device, dtype) for s in shapes * 3]
    # The interpreter casts float64 to bfloat16 wrongly.
    half = torch.float16 if dtype == torch.float64 else torch.bfloat16

    def moved(*tensors: Tensor) -> list[Tensor]:
        params, targets = ([x.detach().clone() for x in tensors[k : k + 4]] for k in (0, 4))
        moments = [[0.1 * x for x in params], [x.square() for x in params]]
        steps = [torch.full((), 3.0, device=place.device) for _ in params]
        copies = [torch.empty_like(x, dtype=half) for x in params]
        shadows, target_shadows = copies[:3], [torch.empty_like(params[0], dtype=half)]
        adamw_ema_(
            params, [*tensors[8:11], None], *moments, steps,
            lr=torch.tensor(0.1, device=place.device), targets=[*targets[:2], None, targets[3]],
            momentum=0.9, shadows=[*shadows, None], target_shadows=[*target_shadows, *[None] * 3],
            clip=torch.tensor(0.5, device=place.device), impl=place.impl,
            skip=torch.zeros((), device=place.device),
        )  # fmt: skip
        out = [*params, *targets, *moments[0][:3], *moments[1][:3], *steps]
        return [*out, *shadows, *target_shadows]

    return Use(moved, tensors)


def launch(
    count: int, grad: torch.dtype, half: torch.dtype | None, aligned: bool, tensors: bool
) -> Launch:
    """With numbers as tensors, as in a step of the trainer, or by value."""
    there = [32 * k if aligned else 32 * k + 4 for k in range(1, count + 1)]
    columns = [there] * 7
    rows = Addresses(*columns, [8192] * count, [0, 1] * (count // 2), there, grad, half)
    number: Any = torch.zeros(()) if tensors else 0.5
    numbers = Numbers([number] * 2, number, number, number)
    groups = [(0.9, 0.95, 1e-8, 0.05)] * 2
    return (
        "optim.adamw_kernel",
        lambda module: module.launch(rows, groups, numbers, torch.zeros(1)),
    )


def random_call(draw: Draw) -> None:
    """Any lists, of any shapes and layouts, with and without gradients, targets and copies."""
    count = draw.size(0, 4)
    shapes = [draw.one_of((), (0,), (1,), (3, 5), (2, 1, 4), (4099,)) for _ in range(count)]
    half = draw.one_of(*HALVES)
    dtypes = [draw.one_of(torch.float32, torch.float64) for _ in shapes]

    def made(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        draw.seed_torch()
        layout = draw.one_of("dense", "turned", "sliced")
        return laid_out(torch.randn(shape).to(draw.device, dtype), layout)

    params, targets, m, v = (
        [made(s, d) for s, d in zip(shapes, dtypes, strict=True)] for _ in range(4)
    )
    v = [x.square() for x in v]
    grads = [
        draw.normal(s, draw.one_of(d, *HALVES)) if draw.flag() else None
        for s, d in zip(shapes, dtypes, strict=True)
    ]
    follow = [t if draw.flag() else None for t in targets]
    shadows = [made(s, half) if draw.flag() else None for s in shapes]
    copies = [
        made(s, half) if t is not None and draw.flag() else None
        for s, t in zip(shapes, follow, strict=True)
    ]
    done = draw.one_of(0.0, 7.0)
    steps = [torch.tensor(done, device=draw.device) for _ in shapes]
    momentum = draw.one_of(0.0, 0.3, 0.98, 1.0)
    lr, clip, skip = (
        draw.one_of(0.0, 0.125),
        draw.one_of(None, 0.5),
        draw.one_of(None, 0.0, 1.0, float("nan")),
    )
    before = [[x.clone() for x in column] for column in (params, m, v, targets)]
    adamw_ema_(
        params, grads, m, v, steps, betas=(0.9, 0.99), weight_decay=0.1, targets=follow,
        lr=torch.tensor(lr, device=draw.device) if draw.flag() else lr,
        momentum=momentum if any(t is not None for t in follow) else None,
        shadows=shadows, target_shadows=copies, clip=clip, impl=draw.impl,
        skip=None if skip is None else torch.tensor(skip, device=draw.device),
    )  # fmt: skip
    runs = skip is None or skip == 0
    for k, (p, m_of, v_of, t) in enumerate(zip(*before, strict=True)):
        found = [params[k], m[k], v[k], targets[k]]
        g = grads[k]
        ends = []
        for dtype in (p.dtype, torch.float64):
            own = [x.to(dtype) for x in (p, m_of, v_of)]
            if runs and g is not None:
                scaled = g.to(dtype) * (1.0 if clip is None else clip)
                own = formula(own[0], scaled, *own[1:], done + 1, lr, 0.1)
            own.append(t.to(dtype))
            if runs and follow[k] is not None:
                own[3] = torch.lerp(own[3], own[0], 1 - momentum)
            ends.append(own)
        assert steps[k] == done + (runs and g is not None)
        for ours, eager, true in zip(found, *ends, strict=True):
            assert_within_budget(ours, eager, true, f"tensor {k}")
        for copy, original in ((shadows[k], params[k]), (copies[k], targets[k])):
            if runs and copy is not None:
                assert_within_budget(copy, original.to(half), original, f"copy {k}")


CASE = OpCase(
    op=adamw_ema_,
    tests=["test_adamw.py", "test_adamw_optimizer.py"],
    arguments=arguments,
    calls=calls,
    spoils={
        "params": FLOAT | EXPANDED | casts(torch.bfloat16),
        "grads": FLOAT | casts(torch.float64),
        "exp_avgs": LIKE_WEIGHT,
        "exp_avg_sqs": LIKE_WEIGHT,
        "targets": LIKE_WEIGHT,
        "shadows": FLOAT | EXPANDED | casts(torch.float32, torch.bfloat16),
        "target_shadows": FLOAT | EXPANDED | casts(torch.float32, torch.bfloat16),
        "steps": LONGER | PLACES | casts(torch.float64, torch.int64),
        "lr": [*WRONG_NUMBER, torch.tensor(-1.0), torch.ones(2), torch.tensor(1)],
        "betas": [
            (1.0, 0.9),
            (0.9, 1.0),
            (-0.1, 0.9),
            (0.9, NAN),
            (0.9,),
            (torch.tensor(0.5),) * 2,
        ],
        "eps": [*WRONG_NUMBER, torch.tensor(0.1)],
        "weight_decay": [*WRONG_NUMBER, torch.tensor(0.1)],
        "momentum": [*WRONG_SHARE, None, torch.tensor(1)],
        "clip": [*WRONG_NUMBER, torch.ones(2), torch.tensor(1)],
        "skip": LONGER | NOT_FLOATS,
        "impl": WRONG_CHOICE,
    },
    uses=[use],
    learns=False,
    launches={
        "adamw": launch(16, torch.float32, None, True, True),
        "adamw-shadow": launch(170, torch.float32, torch.bfloat16, True, True),
        "adamw-half-grads": launch(16, torch.bfloat16, torch.bfloat16, True, False),
        "adamw-unaligned": launch(8, torch.float32, torch.bfloat16, False, False),
    },
    fuzz=Fuzz(random_call, examples=40, interpreted=20),
    in_cpp=True,
)
