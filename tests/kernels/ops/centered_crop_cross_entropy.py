"""The centered cross-entropy of every pair of different crops."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from sjepa_kernels import centered_crop_cross_entropy
from tests.kernels.cases import Place, leaves_of, meta
from tests.kernels.fuzzing import FLOATS, Draw
from tests.kernels.op_case import Arguments, Fuzz, Launch, OpCase, Use, normals
from tests.kernels.ops import _losses
from tests.kernels.spoils import FLOAT, without


def arguments() -> Arguments:
    made = normals(student=(4, 3, 6), teacher=(2, 3, 6), center=(6,))
    return made | {"temp_student": 0.1, "temp_target": 0.06, "impl": "auto"}


def use(place: Place, dtype: torch.dtype, small: bool) -> Use:
    batch, width = (2, 5) if small else (9, 130)
    (student,) = leaves_of(place, (3, batch, width), dtype=dtype)
    fixed = (torch.randn(shape).to(student) for shape in ((2, batch, width), (width,)))
    return Use(partial(centered_crop_cross_entropy, impl=place.impl), [student, *fixed])


def launch(shape: tuple[int, ...], dtype: torch.dtype, full: bool) -> Launch:
    students, teachers, batch, width = shape
    student = meta(students, batch, width, dtype=dtype)
    teacher = meta(teachers, batch, width, dtype=dtype)
    return "losses.crop_pairs_ce", lambda module: module._launch(
        student, teacher, meta(width), meta(), meta(), full, full
    )


SHAPES = (10, 2, 64, 65536), (2, 2, 1024, 4096), (8, 4, 64, 8192)
LAUNCHES = {
    f"crops-{'x'.join(map(str, shape))}-{str(dtype)[6:]}{'-all' * full}": launch(shape, dtype, full)
    for shape in SHAPES
    for dtype in (torch.bfloat16, torch.float32)
    for full in (False, True)
}
LAUNCHES["crops-8x4x64x8192-float16-all"] = launch(SHAPES[2], torch.float16, True)
LAUNCHES["crops-odd"] = launch((5, 3, 7, 1001), torch.float32, True)


# In lanes beyond the row, whose values are thrown away.
@np.errstate(over="ignore")
def random_call(draw: Draw) -> None:
    """Any number of crops on either side, with and without the pairs of the same crop."""
    seen, targets, batch = draw.size(1), draw.size(1), draw.size(1)
    skip_same = seen * targets > 1 and draw.flag()
    width, spread = draw.one_of(1, 2, 7, 16, 33, 130), draw.one_of(0.01, 1.0, 20.0)
    student, teacher = (
        draw.lay_out(spread * draw.normal((n, batch, width), draw.one_of(*FLOATS)))
        for n in (seen, targets)
    )
    student = student.detach().requires_grad_()
    center = draw.normal((width,), draw.one_of(*FLOATS))
    temps, passed = _losses.temperatures(draw)
    used = torch.ones(targets, seen, device=draw.device)
    if skip_same:
        used -= torch.eye(targets, seen, device=draw.device)

    def plain(s: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        y = (teacher.to(dtype) - center.to(dtype)) / temps[1]
        log_p = torch.log_softmax(s.to(dtype) / temps[0], -1)
        pairs = -torch.einsum("tbk,sbk->ts", torch.softmax(y, -1), log_p) / batch
        return (pairs * used.to(dtype)).sum() / used.to(dtype).sum(), teacher.to(dtype).sum((0, 1))

    options = passed | {"skip_same": skip_same, "impl": draw.impl}
    found = centered_crop_cross_entropy(student, teacher, center, **options)
    shifted = teacher.double() - center.double()
    _losses.assert_loss_close(student, *found, plain, shifted, temps, draw.one_of(1.0, 3.0))


CASE = OpCase(
    op=centered_crop_cross_entropy,
    tests=["test_crops.py"],
    arguments=arguments,
    says=[
        ({"student": torch.zeros(2, 3)}, r"student: \(2, 3\); expected \(crops, batch, K\)"),
        ({"teacher": torch.zeros(0, 3, 6)}, r"teacher: \(0, 3, 6\)"),
        ({"teacher": torch.zeros(2, 1, 6)}, r"teacher: \(2, 1, 6\); .* \(T, B, K\) = \(T, 3, 6\)"),
        (
            dict.fromkeys(("student", "teacher"), torch.zeros(1, 3, 6)),
            "student: one crop, the teacher",
        ),
    ],
    spoils=_losses.SPOILS
    | {
        "student": without(FLOAT, "one axis more")
        | {
            "another axis": lambda x: x[None],
            "none along 0": lambda x: x[:0],
            "none along 1": lambda x: x[:, :0],
            "none along 2": lambda x: x[..., :0],
        },
        "teacher": FLOAT | {"no crops": lambda x: x[:0]},
    },
    uses=[use],
    launches=LAUNCHES,
    fuzz=Fuzz(random_call),
    in_cpp=True,
)
