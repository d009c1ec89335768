"""One normalised layer added to a weighted total."""

from __future__ import annotations

import torch

from sjepa_kernels import accumulate_normalized_
from tests.kernels.op_case import Absent, Arguments, OpCase, normals
from tests.kernels.spoils import FLOAT, INF, NAN, WRONG_CHOICE


def arguments() -> Arguments:
    made = normals(total=(2, 3, 4), hidden=(2, 3, 4))
    return made | {"weight": 0.5, "norm": "layer", "impl": "auto"}


CASE = OpCase(
    op=accumulate_normalized_,
    tests=["test_targets.py"],
    arguments=arguments,
    says=[
        ({"total": torch.zeros(6, 4)}, r"total: \(6, 4\); expected \(B, N, D\)"),
        ({"total": torch.zeros(2, 3, 0)}, r"total: \(2, 3, 0\); .*D at least 1"),
        ({"total": torch.zeros(2, 3, 4).half()}, "total: torch.float16; .*needs float32"),
        ({"total": torch.zeros(2, 3, 4, requires_grad=True)}, "total: requires a gradient"),
        ({"total": torch.zeros(2, 4, 3).mT}, "total: strides .*contiguous"),
        ({"hidden": torch.zeros(2, 3, 4).int()}, "hidden: torch.int32"),
        ({"hidden": torch.zeros(2, 3, 4).double()}, "total: torch.float32; pass a float64 total"),
        ({"hidden": torch.zeros(2, 3, 5)}, r"hidden: \(2, 3, 5\)"),
        ({"weight": torch.ones(1)}, r"weight: \(1,\); pass a float or a 0-dim tensor"),
        ({"norm": "batch"}, "norm: 'batch'; choose one of instance, layer, none"),
    ],
    spoils={
        "total": FLOAT
        | {
            "half": lambda x: x.half(),
            "expanded": lambda x: x[:1].expand(2, 3, 4),
            "a leaf": lambda x: x.requires_grad_(),
        },
        "hidden": FLOAT | {"float64": lambda x: x.double()},
        "weight": [NAN, INF, torch.tensor(NAN), torch.ones(2)],
        "norm": ["", "batch"],
        "impl": WRONG_CHOICE,
    },
    uses=Absent("poisoned with ContextualizedTargets, which calls it for each layer"),
    launches=Absent("compiled with ContextualizedTargets, which launches the same kernel"),
    fuzz=Absent("called at the end of each random call of ContextualizedTargets"),
    checked_with="ContextualizedTargets",
)
