"""Cross-entropy of probabilities that are given, with rows chosen and weighted."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from sjepa_kernels import soft_cross_entropy
from tests.kernels.cases import Outputs, Place, assert_within_budget, gradients, leaves_of, meta
from tests.kernels.fuzzing import FLOATS, Draw
from tests.kernels.op_case import Arguments, Fuzz, Launch, OpCase, Use, normals
from tests.kernels.spoils import FLOAT, IDS, VECTOR, WRONG_CHOICE, WRONG_POSITIVE, without


def arguments() -> Arguments:
    return normals(student=(2, 3)) | {
        "probabilities": torch.rand(5, 3),
        "temp_student": 0.1,
        "probabilities_index": torch.randint(5, (2,)),
        "row_weights": torch.rand(2),
        "impl": "auto",
    }


def use(widths: tuple[int, int], place: Place, dtype: torch.dtype, small: bool) -> Use:
    """Enough rows for several threads or programs; at the temperature 1, for any loss scale."""
    width = widths[0] if small else widths[1]
    rows = 4 if small else (1000 if place.impl == "cpu" else 40 if width < 4096 else 4)
    (student,) = leaves_of(place, (rows, width), dtype=dtype)
    fixed = torch.randn(rows + 2, width).softmax(1), torch.rand(rows) + 0.1
    index = torch.randint(rows + 2, (rows,)).to(place.device)

    def loss(s: Tensor, p: Tensor, weights: Tensor, index: Tensor) -> Outputs:
        options = {"temp_student": 1.0, "impl": place.impl}
        of_rows = {"probabilities_index_R": index, "row_weights_R": weights}
        chosen = soft_cross_entropy(s, p, **of_rows, **options)
        return chosen, soft_cross_entropy(s, p[: len(s)], **options)

    return Use(loss, [student, *(x.to(student) for x in fixed), index])


def launch(rows: int, width: int, dtype: torch.dtype, full: bool) -> Launch:
    """A teacher's probabilities are often float32."""
    index = meta(rows, dtype=torch.int64) if full else None
    weights = meta(rows) if full else None
    student, given = meta(rows, width, dtype=dtype), meta(rows, width)
    return "losses.centered_ce", lambda module: module._launch(
        student, given, None, meta(), None, index, weights, full
    )


LAUNCHES = {
    f"soft-{rows}x{width}-{label}{'-all' * full}": launch(rows, width, dtype, full)
    for rows, width in ((90112, 1024), (4096, 4096), (8192, 65536), (77, 100))
    for label, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))
    for full in (False, True)
}
LAUNCHES["soft-8192x65536-fp16-all"] = launch(8192, 65536, torch.float16, True)


# In lanes beyond the row, whose values are thrown away.
@np.errstate(over="ignore")
def random_call(draw: Draw) -> None:
    """Rows of any sum but those that float16 forbids; one of zeros."""
    rows, width = draw.size(1, 20), draw.one_of(1, 2, 7, 16, 33, 100, 257)
    indexed, weighted = draw.flag(), draw.flag()
    given_rows = draw.size(1, 30) if indexed else rows
    student = (
        draw.one_of(0.01, 1.0, 20.0) * draw.normal((rows, width), draw.one_of(*FLOATS))
    ).detach()
    student = draw.lay_out(student).requires_grad_()
    dense = draw.normal((given_rows, width), torch.float32).softmax(1)
    dense = dense * torch.linspace(0, 1.9, given_rows, device=draw.device)[:, None]
    given = draw.lay_out(dense.to(draw.one_of(*FLOATS)))
    weights = draw.normal((rows,), draw.one_of(*FLOATS)).abs() + 0.1 if weighted else None
    index = draw.ids((1, rows), given_rows)[0] if indexed else None
    temp = draw.one_of(0.04, 0.1, 2.0)
    passed = torch.tensor(temp, dtype=torch.float64, device=draw.device) if draw.flag() else temp

    def plain(s: Tensor, dtype: torch.dtype) -> Tensor:
        p = (given if index is None else given[index.long()]).to(dtype)
        loss = -(p * torch.log_softmax(s.to(dtype) / temp, 1)).sum(1)
        w = torch.ones_like(loss) if weights is None else weights.to(dtype)
        return (w * loss).sum() / w.sum()

    options = {"probabilities_index_R": index, "row_weights_R": weights, "impl": draw.impl}
    loss = soft_cross_entropy(student, given, temp_student=passed, **options)
    exact = student.detach().double().requires_grad_()
    eager, truth = plain(student, loss.dtype), plain(exact, torch.float64)
    scale = draw.one_of(1.0, 3.0)
    grads = [
        gradients(x, [leaf], torch.full_like(x, scale))[0]
        for x, leaf in ((loss, student), (eager, student), (truth, exact))
    ]
    # As in `_losses.assert_loss_close`.
    eps = torch.finfo(loss.dtype).eps
    slack = eps * float(exact.detach().abs().max()) / temp
    assert_within_budget(loss, eager, truth, "loss", slack)
    rounding = eps * 2 * scale / temp / max(float(grads[2].norm()), 1e-30)
    assert_within_budget(*grads, "gradient", slack + rounding + torch.finfo(student.dtype).eps)


CASE = OpCase(
    op=soft_cross_entropy,
    tests=["test_soft_ce.py"],
    arguments=arguments,
    says=[
        ({"student": torch.zeros(2, 0)}, r"student: \(2, 0\); .*D at least 1"),
        ({"student": torch.zeros(2, 3).int()}, "student: torch.int32"),
        ({"probabilities": torch.zeros(4, 4)}, r"probabilities: \(4, 4\); .*D = 3"),
        ({"probabilities_index": None}, r"probabilities: \(5, 3\); .*without probabilities_index"),
        ({"probabilities": torch.zeros(5, 3).long()}, "probabilities: torch.int64"),
        ({"temp_student": 0.0}, r"temp_student: 0\.0; pass a finite number above zero"),
        ({"probabilities_index": torch.tensor([0, 5])}, r"probabilities_index: ids from 0 to 5"),
        ({"row_weights": torch.ones(3)}, r"row_weights: \(3,\)"),
    ],
    spoils={
        "student": FLOAT | {"no rows": lambda x: x[:0], "no columns": lambda x: x[:, :0]},
        "probabilities": FLOAT | {"no rows": lambda x: x[:0]},
        "temp_student": WRONG_POSITIVE,
        "probabilities_index": without(IDS, "one axis"),
        "row_weights": VECTOR,
        "impl": WRONG_CHOICE,
    },
    # Of one tile, and of more than fits into one.
    uses=[partial(use, (5, 100)), partial(use, (8, 4500))],
    launches=LAUNCHES,
    fuzz=Fuzz(random_call, examples=50, interpreted=15),
    in_cpp=True,
)
