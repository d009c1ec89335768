"""Random calls of every public function: right against float64 when valid, a named error when not.

Shapes include 0 and 1; strides are dense, turned, sliced out of NaN, or expanded. The examples are
the same in every run. The place `cpu-triton` runs the kernels themselves, interpreted.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sjepa_kernels import (
    EmaPlan,
    attention,
    centered_softmax_cross_entropy,
    ema_update_,
    pack_tokens,
    philox4x32,
    scatter_mask_tokens,
    update_center_,
)
from sjepa_kernels._triton import INTERPRETED
from tests.kernels.cases import Place, assert_within_budget, gradients

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HALVES = FLOATS[2:]
LAYOUTS = ["dense", "turned", "sliced", "expanded"]

fuzz = settings(
    derandomize=True,
    deadline=None,
    max_examples=40 if INTERPRETED else 80,
    # `place` is the same for all examples of a test, so it may be a fixture.
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
Draw = st.DataObject


def one_of(data: Draw, *values: Any) -> Any:
    return data.draw(st.sampled_from(values))


def size(data: Draw, least: int = 0, most: int = 4) -> int:
    return data.draw(st.integers(least, most))


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same numbers in other strides ("expanded": its first row for all)."""
    if layout == "turned" and values.ndim > 1:
        return values.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "sliced":
        gap = float("nan") if values.dtype.is_floating_point else 2**31 - 1
        return torch.stack([values, torch.full_like(values, gap)], dim=-1)[..., 0]
    if layout == "expanded" and values.ndim > 1 and values.shape[0] > 0:
        return values[:1].expand(values.shape)
    return values


def whole(data: Draw, place: Place, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Whole numbers: a sum of a few is exact in every dtype, so only the last rounding is left."""
    torch.manual_seed(size(data, 0, 99))
    values = torch.randint(-8, 9, shape).to(place.device, dtype)
    return laid_out(values, one_of(data, *LAYOUTS))


def normal(data: Draw, place: Place, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    torch.manual_seed(size(data, 0, 99))
    values = torch.randn(shape).to(place.device, dtype)
    return laid_out(values, one_of(data, *LAYOUTS))


def assert_rounded(ours: Tensor, truth: Tensor, what: str) -> None:
    assert_within_budget(ours, truth.detach().to(ours.dtype), truth, what)


def assert_all_rounded(
    out: Tensor, leaves: list[Tensor], true_out: Tensor, exact: list[Tensor], grad: Tensor
) -> None:
    """The output and every gradient are the float64 ones, rounded."""
    assert_rounded(out, true_out, "output")
    theirs = gradients(true_out, exact, grad.double())
    for k, (got, true) in enumerate(zip(gradients(out, leaves, grad), theirs, strict=True)):
        assert_rounded(got, true, f"gradient {k}")


def random_ids(
    data: Draw, place: Place, shape: tuple[int, int], bound: int, *, distinct: bool
) -> Tensor:
    torch.manual_seed(size(data, 0, 99))
    if distinct:
        rows = [torch.randperm(bound)[: shape[1]] for _ in range(shape[0])]
        ids = torch.stack(rows) if rows else torch.empty(shape, dtype=torch.int64)
    else:
        ids = torch.randint(max(bound, 1), shape)
    ids = ids.to(place.device, one_of(data, torch.int32, torch.int64))
    return laid_out(ids, one_of(data, *LAYOUTS))


@fuzz
@given(data=st.data())
def test_token_ops(place: Place, data: Draw) -> None:
    """Also ids that repeat (pack), tables and tokens of different dtypes, no tokens at all."""
    batch, segments, joints = size(data), size(data), size(data)
    width, tokens = one_of(data, 0, 1, 3, 16, 33, 260), segments * joints
    kept = size(data, 0, tokens)
    shapes = [(batch, kept, width), (width,), (segments, width), (joints, width)]
    leaves = [whole(data, place, s, one_of(data, *FLOATS)).requires_grad_() for s in shapes]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    visible, mask_token, temporal, spatial = exact
    position = (temporal[:, None] + spatial[None]).flatten(0, 1)
    if data.draw(st.booleans(), label="pack"):
        masked = size(data, 0, tokens + 2) if tokens else 0
        keep = random_ids(data, place, (batch, kept), tokens, distinct=False)
        hide = random_ids(data, place, (batch, masked), tokens, distinct=False)
        out = pack_tokens(*leaves[:2], keep, hide, *leaves[2:], impl=place.impl)
        content = torch.cat([visible, mask_token.expand(batch, masked, width)], dim=1)
        truth = content + position[torch.cat([keep.long(), hide.long()], dim=1)]
    else:
        keep = random_ids(data, place, (batch, kept), tokens, distinct=True)
        out = scatter_mask_tokens(*leaves[:2], keep, *leaves[2:], impl=place.impl)
        hit = (keep[:, :, None] == torch.arange(tokens, device=keep.device)).double()
        content = torch.einsum("bkn,bkd->bnd", hit, visible)
        truth = content + (1 - hit.sum(1))[:, :, None] * mask_token + position
    grad = whole(data, place, tuple(out.shape), out.dtype)
    assert_all_rounded(out, leaves, truth, exact, grad)


# In lanes beyond the row, whose values are thrown away.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
@fuzz
@given(data=st.data())
def test_centered_ce(place: Place, data: Draw) -> None:
    rows, width = size(data, 1, 20), one_of(data, 1, 2, 7, 16, 33, 100, 257)
    indexed, weighted = data.draw(st.booleans()), data.draw(st.booleans())
    teacher_rows = size(data, 1, 30) if indexed else rows
    spread = one_of(data, 0.01, 1.0, 20.0)
    student, teacher = (
        (spread * normal(data, place, (n, width), one_of(data, *FLOATS))).detach()
        for n in (rows, teacher_rows)
    )
    student = laid_out(student, one_of(data, *LAYOUTS)).requires_grad_()
    center = normal(data, place, (width,), one_of(data, *FLOATS))
    weights = normal(data, place, (rows,), one_of(data, *FLOATS)).abs() + 0.1 if weighted else None
    index = None
    if indexed:
        index = random_ids(data, place, (1, rows), teacher_rows, distinct=False)[0]
    temps = [one_of(data, 0.04, 0.1, 2.0) for _ in range(2)]
    passed = [
        torch.tensor(t, dtype=torch.float64, device=place.device) if size(data, 0, 1) else t
        for t in temps
    ]

    def plain(s: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        t = (teacher if index is None else teacher[index.long()]).to(dtype)
        y, x = (t - center.to(dtype)) / temps[1], s.to(dtype) / temps[0]
        loss = -(torch.softmax(y, 1) * torch.log_softmax(x, 1)).sum(1)
        w = torch.ones_like(loss) if weights is None else weights.to(dtype)
        return (w * loss).sum() / w.sum(), t.sum(0)

    loss, center_sum = centered_softmax_cross_entropy(
        student,
        teacher,
        center,
        temp_student=passed[0],
        temp_target=passed[1],
        teacher_index_R=index,
        row_weights_R=weights,
        impl=place.impl,
    )
    exact = student.detach().double().requires_grad_()
    eager = plain(student, loss.dtype)
    truth = plain(exact, torch.float64)
    shifted = teacher.double() - center.double()
    grad = torch.tensor(one_of(data, 1.0, 3.0), device=place.device)
    ours_grad, eager_grad, true_grad = (
        gradients(x, [leaf], grad.to(x))[0]
        for x, leaf in ((loss, student), (eager[0], student), (truth[0], exact))
    )
    assert_within_budget(center_sum, eager[1], truth[1], "centre sum")
    # With as few numbers as here, eager's roundings may happen to cancel, so ours are allowed for:
    # a softmax multiplies the rounding of its input by that input's size, the gradient is a
    # difference of two probabilities times `most`, and it is rounded to the student's dtype.
    largest = max(x.abs().max() / t for x, t in ((exact, temps[0]), (shifted, temps[1])))
    eps, most = torch.finfo(loss.dtype).eps, 2 * float(grad) / temps[0]
    slack = eps * float(largest.detach())
    assert_within_budget(loss, eager[0], truth[0], "loss", slack)
    slack += eps * most / max(float(true_grad.norm()), 1e-30) + torch.finfo(student.dtype).eps
    assert_within_budget(ours_grad, eager_grad, true_grad, "gradient", slack)


@fuzz
@given(data=st.data())
def test_ema(place: Place, data: Draw) -> None:
    """Lists of any lengths and shapes, dense or not, as a plan or as one call, with shadows."""
    count = size(data, 0, 5)
    shapes = [one_of(data, (), (0,), (1,), (3, 5), (2, 1, 4), (4099,)) for _ in range(count)]
    halves = data.draw(st.booleans(), label="half-precision targets")
    targets = [normal(data, place, s, one_of(data, *FLOATS[: 4 if halves else 2])) for s in shapes]
    targets = [t.contiguous() if 0 in t.stride() else t for t in targets]
    sources = [normal(data, place, s, one_of(data, *FLOATS)) for s in shapes]
    shadows = None
    if data.draw(st.booleans(), label="shadows"):
        like = [normal(data, place, s, one_of(data, *HALVES)) for s in shapes]
        shadows = [s.clone() if 0 in s.stride() else s for s in like]
    momentum = one_of(data, 0.0, 0.3, 0.98, 1.0) if not halves else one_of(data, 0.0, 0.3, 0.98)
    passed = momentum
    if not halves and data.draw(st.booleans(), label="momentum on the device"):
        passed = torch.tensor(momentum, dtype=one_of(data, *FLOATS[:2]), device=place.device)
    weight = float(1 - passed)
    eager = [torch.lerp(t, s.to(t.dtype), weight) for t, s in zip(targets, sources, strict=True)]
    truth = [
        (1 - weight) * t.double() + weight * s.to(t.dtype).double()
        for t, s in zip(targets, sources, strict=True)
    ]
    if data.draw(st.booleans(), label="plan"):
        EmaPlan(targets, sources, shadows, impl=place.impl).update_(passed)
    else:
        ema_update_(targets, sources, passed, shadows=shadows, impl=place.impl)
    for k, (ours, theirs, true) in enumerate(zip(targets, eager, truth, strict=True)):
        assert_within_budget(ours, theirs, true, f"tensor {k}")
        if shadows:
            # Of a half-precision target, the kernel rounds the number before its own rounding.
            slack = torch.finfo(ours.dtype).eps if ours.dtype in HALVES else 0.0
            eager_shadow = ours.to(shadows[k].dtype)
            assert_within_budget(shadows[k], eager_shadow, ours, f"shadow {k}", slack)


@fuzz
@given(data=st.data())
def test_update_center(data: Draw) -> None:
    width, place = size(data, 0, 9), Place("cpu", "torch")
    dtype = one_of(data, *FLOATS[:2])
    center, total = normal(data, place, (width,), dtype), normal(data, place, (width,), dtype)
    momentum, count = one_of(data, 0.0, 0.5, 0.9, 1.0), size(data, 1, 1000)
    truth = momentum * center.double() + (1 - momentum) * total.double() / count
    eager = momentum * center + (1 - momentum) * (total / count)
    on_device = data.draw(st.booleans())
    arguments = (torch.tensor(count), torch.tensor(momentum)) if on_device else (count, momentum)
    update_center_(center, total, *arguments)
    # A momentum that is a float32 tensor is rounded before it is used.
    slack = 1e-7 * (center.double() - total.double() / count).norm() if on_device else 0
    allowed = 2 * (eager.double() - truth).norm() + 5e-7 * truth.norm() + slack
    assert (center.double() - truth).norm() <= allowed


@fuzz
@given(data=st.data())
def test_attention(data: Draw) -> None:
    batch, heads, queries = size(data), size(data), size(data, 0, 9)
    keys, width = size(data, 1, 9), one_of(data, 1, 3, 8, 16)
    dtype, place = one_of(data, *FLOATS), Place("cpu", "torch")
    leaves = [
        normal(data, place, (batch, heads, n, width), dtype).requires_grad_()
        for n in (queries, keys, keys)
    ]
    out = attention(*leaves, backend=one_of(data, "auto", "sdpa", "explicit"))
    exact = [x.detach().double().requires_grad_() for x in leaves]
    scores = torch.einsum("bhnd,bhmd->bhnm", *exact[:2]) / width**0.5
    truth = (scores - scores.logsumexp(-1, keepdim=True)).exp() @ exact[2]
    grad = normal(data, place, tuple(out.shape), dtype)
    assert out.shape == truth.shape and out.dtype == dtype
    bound = {torch.float64: 1e-13, torch.float32: 4e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}
    scale = max(truth.norm(), grad.double().norm(), *(x.norm() for x in exact))
    pairs = zip(gradients(out, leaves, grad), gradients(truth, exact, grad.double()), strict=True)
    for got, true in [(out, truth), *pairs]:
        assert (got.double() - true).norm() <= bound[dtype] * scale


def philox_in_integers(seed: int, counter: list[int]) -> list[int]:
    """The definition in Python's integers."""
    mask = 2**32 - 1
    k0, k1 = seed & mask, seed >> 32 & mask
    c0, c1, c2, c3 = (c & mask for c in counter)
    for _ in range(10):
        high, low = divmod(c0 * 0xD2511F53, 2**32), divmod(c2 * 0xCD9E8D57, 2**32)
        c0, c1, c2, c3 = low[0] ^ c1 ^ k0, low[1], high[0] ^ c3 ^ k1, high[1]
        k0, k1 = k0 + 0x9E3779B9 & mask, k1 + 0xBB67AE85 & mask
    return [c0, c1, c2, c3]


@fuzz
@given(data=st.data())
def test_philox(data: Draw) -> None:
    """Counters of any sign, shape, stride and integer dtype, broadcast against each other."""
    seed = data.draw(st.integers(-(2**63), 2**63 - 1))
    shape = (size(data, 0, 3), size(data, 0, 3))
    counters: list[Any] = []
    for _ in range(4):
        if data.draw(st.booleans()):
            counters.append(data.draw(st.integers(-(2**70), 2**70)))
            continue
        dtype = one_of(data, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
        torch.manual_seed(size(data, 0, 99))
        info = torch.iinfo(dtype)
        values = torch.randint(info.min, info.max, shape[size(data, 0, 2) :], dtype=dtype)
        counters.append(laid_out(values.to(dtype), one_of(data, "dense", "turned", "expanded")))
    words = philox4x32(torch.tensor(seed), *counters)
    tensors = [torch.as_tensor(c & 2**32 - 1 if isinstance(c, int) else c.long()) for c in counters]
    full = torch.broadcast_tensors(*tensors)
    expected = [
        philox_in_integers(seed, list(c))
        for c in zip(*(f.flatten().tolist() for f in full), strict=True)
    ]
    assert all(word.shape == full[0].shape and word.dtype == torch.int64 for word in words)
    assert torch.stack([word.flatten() for word in words], -1).tolist() == expected
