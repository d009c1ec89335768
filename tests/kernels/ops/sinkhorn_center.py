"""The center with which a softmax is Sinkhorn-Knopp's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sjepa_kernels import sinkhorn_center
from tests.kernels.cases import Outputs, Place, assert_within_budget, meta
from tests.kernels.fuzzing import FLOATS, Draw
from tests.kernels.op_case import Arguments, Fuzz, Launch, OpCase, Use, normals
from tests.kernels.spoils import FLOAT, WRONG_CHOICE, WRONG_POSITIVE, without


def published(teacher_BK: Tensor, temp: float, iterations: int) -> Tensor:
    """Sinkhorn-Knopp of SwAV, DINOv2 and DINOv3 on the matrix itself, in its dtype: (B, K)."""
    q_KB = torch.exp(teacher_BK / temp).T
    prototypes, samples = q_KB.shape
    q_KB = q_KB / q_KB.sum()
    for _ in range(iterations):
        q_KB = q_KB / q_KB.sum(dim=1, keepdim=True) / prototypes
        q_KB = q_KB / q_KB.sum(dim=0, keepdim=True) / samples
    return samples * q_KB.T


def in_logarithms(teacher_BK: Tensor, temp: float, iterations: int) -> Tensor:
    """The center by scaling rows and columns in turn, in the dtype of the logits."""
    y_BK = teacher_BK / temp
    samples, prototypes = y_BK.shape
    sample_B, share = y_BK.new_zeros(samples), float(samples)
    for _ in range(iterations):
        scale_K = math.log(share) - torch.logsumexp(y_BK + sample_B[:, None], dim=0)
        sample_B = -torch.logsumexp(y_BK + scale_K, dim=1)
        share = samples / prototypes
    return -temp * scale_K


def arguments() -> Arguments:
    options = {"temp_target": 0.07, "iterations": 3, "all_reduce": None, "impl": "auto"}
    return normals(teacher=(4, 3)) | options


def use(place: Place, dtype: torch.dtype, small: bool) -> Use:
    """More samples and prototypes than a tile has; one and two iterations, and a hook."""
    shape = (3, 4) if small else (37, 530)
    teacher = (0.3 * torch.randn(shape)).to(place.device, dtype)

    def centers(t: Tensor) -> Outputs:
        options = {"temp_target": 0.06, "impl": place.impl}
        one = sinkhorn_center(t, iterations=1, **options)
        return one, sinkhorn_center(t, iterations=2, all_reduce=lambda x: 2 * x, **options)

    return Use(centers, [teacher])


def launch(samples: int, width: int, dtype: torch.dtype, first: bool) -> Launch:
    teacher = meta(samples, width, dtype=dtype)
    return "losses.sinkhorn", lambda module: module._launch(teacher, meta(width), meta(), first)


LAUNCHES = {
    f"sinkhorn-{samples}x{width}-{label}{'-first' * first}": launch(samples, width, dtype, first)
    for samples, width in ((8192, 65536), (4096, 4096), (77, 100))
    for label, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))
    for first in (False, True)
}


def random_call(draw: Draw) -> None:
    samples, width = draw.size(1, 20), draw.one_of(1, 2, 7, 16, 33, 100, 513)
    spread, dtype = draw.one_of(0.01, 1.0, 100.0), draw.one_of(*FLOATS)
    teacher = draw.lay_out(spread * draw.normal((samples, width), dtype))
    temp, iterations = draw.one_of(0.04, 0.07, 2.0), draw.size(1, 4)
    passed = torch.tensor(temp, dtype=torch.float64, device=draw.device) if draw.flag() else temp
    all_reduce = (lambda total: None) if draw.flag() else None
    found = sinkhorn_center(teacher, passed, iterations, all_reduce=all_reduce, impl=draw.impl)
    truth = in_logarithms(teacher.double(), temp, iterations)
    eager = in_logarithms(teacher.to(found.dtype), temp, iterations)
    # A logarithm of about 1 has no size of its own: it is rounded where the logits are.
    largest = float(teacher.double().abs().max()) + temp
    slack = 8 * torch.finfo(found.dtype).eps * iterations * largest * width**0.5
    assert_within_budget(found, eager, truth, "center", slack / max(float(truth.norm()), 1e-30))


CASE = OpCase(
    op=sinkhorn_center,
    tests=["test_sinkhorn.py"],
    arguments=arguments,
    says=[
        ({"teacher": torch.zeros(2, 3, 4)}, r"teacher: \(2, 3, 4\); .*flatten crops"),
        ({"teacher": torch.zeros(2, 0)}, r"teacher: \(2, 0\); .*K at least 1"),
        ({"teacher": torch.zeros(2, 3).int()}, "teacher: torch.int32"),
        ({"temp_target": 0.0}, r"temp_target: 0\.0; pass a finite number above zero"),
        ({"iterations": 0}, "iterations: 0; pass a whole number, at least 1"),
    ],
    spoils={
        # Of its shape and device there is nothing to compare with.
        "teacher": without(FLOAT, "wider", "narrower", "another device")
        | {"no prototypes": lambda x: x[:, :0]},
        "temp_target": WRONG_POSITIVE,
        "iterations": [0, -1, 2.5, "3"],
        "all_reduce": ["sum", 3],
        "impl": WRONG_CHOICE,
    },
    uses=[use],
    launches=LAUNCHES,
    fuzz=Fuzz(random_call, examples=50, interpreted=15),
    in_cpp=True,
    learns=False,
)
