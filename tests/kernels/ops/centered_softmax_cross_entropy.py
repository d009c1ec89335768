"""Cross-entropy of centered, sharpened targets, with rows chosen and weighted."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from sjepa_kernels import centered_softmax_cross_entropy
from tests.kernels.cases import Outputs, Place, leaves_of, meta
from tests.kernels.fuzzing import FLOATS, Draw
from tests.kernels.op_case import Arguments, Fuzz, Launch, OpCase, Use, normals
from tests.kernels.ops import _losses
from tests.kernels.spoils import FLOAT, IDS, VECTOR, without


def arguments() -> Arguments:
    return normals(student=(2, 3), teacher=(5, 3), center=(3,)) | {
        "temp_student": 0.1,
        "temp_target": 0.06,
        "teacher_index": torch.randint(5, (2,)),
        "row_weights": torch.rand(2),
        "impl": "auto",
    }


def use(widths: tuple[int, int], place: Place, dtype: torch.dtype, small: bool) -> Use:
    """Enough rows for each of several threads, where there are any; a weight for each."""
    rows = 4 if small else (1000 if place.impl == "cpu" else 40)
    width = widths[0] if small else widths[1]
    (student,) = leaves_of(place, (rows, width), dtype=dtype)
    fixed = torch.randn(rows + 2, width), torch.randn(width), torch.rand(rows) + 0.1
    index = torch.randint(rows + 2, (rows,)).to(place.device)

    def loss(s: Tensor, t: Tensor, center: Tensor, weights: Tensor, index: Tensor) -> Outputs:
        options = {"teacher_index_R": index, "row_weights_R": weights}
        chosen = centered_softmax_cross_entropy(s, t, center, **options, impl=place.impl)
        first = centered_softmax_cross_entropy(s, t[: len(s)], center, impl=place.impl)
        return *chosen, *first

    return Use(loss, [student, *(x.to(student) for x in fixed), index])


def launch(rows: int, width: int, dtype: torch.dtype, full: bool) -> Launch:
    index = meta(rows, dtype=torch.int64) if full else None
    weights = meta(rows) if full else None
    student, teacher = meta(rows, width, dtype=dtype), meta(rows, width, dtype=dtype)
    return "losses.centered_ce", lambda module: module._launch(
        student, teacher, meta(width), meta(), meta(), index, weights, full
    )


def scale(dtype: torch.dtype) -> Launch:
    """The backward of both losses."""
    return "losses.scale", lambda module: module._scale_(meta(1 << 20, dtype=dtype), meta())


LAUNCHES = {
    f"ce-{rows}x{width}-{label}{'-all' * full}": launch(rows, width, dtype, full)
    for rows, width in ((172800, 256), (90112, 1024), (4096, 4096), (8192, 65536), (77, 100))
    for label, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))
    for full in (False, True)
}
# Float16 is saved in another scale.
LAUNCHES |= {
    f"ce-{rows}x{width}-fp16-all": launch(rows, width, torch.float16, True)
    for rows, width in ((172800, 256), (8192, 65536))
}
LAUNCHES |= {
    f"scale-{str(dtype)[6:]}": scale(dtype)
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
}


# In lanes beyond the row, whose values are thrown away.
@np.errstate(over="ignore")
def random_call(draw: Draw) -> None:
    rows, width = draw.size(1, 20), draw.one_of(1, 2, 7, 16, 33, 100, 257)
    indexed, weighted = draw.flag(), draw.flag()
    teacher_rows = draw.size(1, 30) if indexed else rows
    spread = draw.one_of(0.01, 1.0, 20.0)
    student, teacher = (
        (spread * draw.normal((n, width), draw.one_of(*FLOATS))).detach()
        for n in (rows, teacher_rows)
    )
    student = draw.lay_out(student).requires_grad_()
    center = draw.normal((width,), draw.one_of(*FLOATS))
    weights = draw.normal((rows,), draw.one_of(*FLOATS)).abs() + 0.1 if weighted else None
    index = None
    if indexed:
        index = draw.ids((1, rows), teacher_rows)[0]
    temps, passed = _losses.temperatures(draw)

    def plain(s: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        t = (teacher if index is None else teacher[index.long()]).to(dtype)
        y, x = (t - center.to(dtype)) / temps[1], s.to(dtype) / temps[0]
        loss = -(torch.softmax(y, 1) * torch.log_softmax(x, 1)).sum(1)
        w = torch.ones_like(loss) if weights is None else weights.to(dtype)
        return (w * loss).sum() / w.sum(), t.sum(0)

    options = passed | {"teacher_index_R": index, "row_weights_R": weights, "impl": draw.impl}
    found = centered_softmax_cross_entropy(student, teacher, center, **options)
    shifted = teacher.double() - center.double()
    _losses.assert_loss_close(student, *found, plain, shifted, temps, draw.one_of(1.0, 3.0))


CASE = OpCase(
    op=centered_softmax_cross_entropy,
    tests=["test_centered_ce.py"],
    arguments=arguments,
    says=[
        ({"student": torch.zeros(2, 0)}, r"student: \(2, 0\); .*D at least 1"),
        ({"student": torch.zeros(2, 2, 3)}, r"student: \(2, 2, 3\); expected \(R, D\)"),
        ({"student": torch.zeros(2, 3).int()}, "student: torch.int32"),
        ({"teacher": torch.zeros(4, 4)}, r"teacher: \(4, 4\)"),
        ({"teacher_index": None}, r"teacher: \(5, 3\); .*without teacher_index"),
        ({"center": torch.zeros(4)}, r"center: \(4,\)"),
        ({"temp_student": 0.0}, r"temp_student: 0\.0; pass a finite number above zero"),
        ({"temp_target": float("nan")}, "temp_target: nan"),
        ({"temp_target": torch.tensor(-1.0)}, r"temp_target: -1\.0"),
        ({"temp_student": torch.ones(2)}, r"temp_student: \(2,\)"),
        ({"teacher_index": torch.tensor([0, 5])}, r"teacher_index: ids from 0 to 5"),
        ({"teacher_index": torch.zeros(3).long()}, r"teacher_index: \(3,\)"),
        ({"row_weights": torch.ones(3)}, r"row_weights: \(3,\)"),
        ({"row_weights": torch.ones(2).int()}, "row_weights: torch.int32"),
    ],
    spoils=_losses.SPOILS
    | {
        "student": FLOAT | {"no rows": lambda x: x[:0], "no columns": lambda x: x[:, :0]},
        "teacher": FLOAT | {"no rows": lambda x: x[:0]},
        "teacher_index": without(IDS, "one axis"),
        "row_weights": VECTOR,
    },
    # Of one tile, and of more than fits into one.
    uses=[partial(use, (5, 100)), partial(use, (8, 4500))],
    launches=LAUNCHES,
    fuzz=Fuzz(random_call),
    in_cpp=True,
)
