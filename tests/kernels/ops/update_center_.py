"""The moving average of the teacher's mean."""

from __future__ import annotations

import torch

from sjepa_kernels import update_center_
from tests.kernels.fuzzing import FLOATS, Draw
from tests.kernels.op_case import Absent, Arguments, Fuzz, OpCase, normals
from tests.kernels.spoils import INF, NAN, VECTOR, WRONG_SHARE


def arguments() -> Arguments:
    return normals(center=(5,), center_sum=(5,)) | {"count": 3, "momentum": 0.9}


def random_call(draw: Draw) -> None:
    width = draw.size(1, 9)
    dtype = draw.one_of(*FLOATS[:2])
    center, total = draw.normal((width,), dtype), draw.normal((width,), dtype)
    momentum, count = draw.one_of(0.0, 0.5, 0.9, 1.0), draw.size(1, 1000)
    truth = momentum * center.double() + (1 - momentum) * total.double() / count
    eager = momentum * center + (1 - momentum) * (total / count)
    on_device = draw.size(0, 1)
    if on_device:
        update_center_(center, total, torch.tensor(count), torch.tensor(momentum))
    else:
        update_center_(center, total, count, momentum)
    # A momentum that is a float32 tensor is rounded before it is used.
    slack = on_device * 1e-7 * (center.double() - total.double() / count).norm()
    allowed = 2 * (eager.double() - truth).norm() + 5e-7 * truth.norm() + slack
    assert (center.double() - truth).norm() <= allowed


CASE = OpCase(
    op=update_center_,
    tests=["test_centered_ce.py"],
    arguments=arguments,
    says=[
        ({"center_sum": torch.zeros(3)}, r"center_sum: \(3,\)"),
        ({"center": torch.zeros(0)}, r"center: \(0,\); .*D at least 1"),
        ({"count": -1}, "count: -1"),
        ({"momentum": 1.5}, r"momentum: 1\.5"),
    ],
    spoils={
        "center": VECTOR | {"expanded": lambda x: x[:1].expand(5)},
        "center_sum": VECTOR,
        "count": [-3, NAN, INF, torch.tensor(-1), torch.ones(2)],
        "momentum": WRONG_SHARE,
    },
    uses=Absent("plain PyTorch, which writes into its argument"),
    launches=Absent("plain PyTorch, without a kernel"),
    fuzz=Fuzz(random_call),
    in_triton=False,
)
