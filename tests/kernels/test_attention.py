"""The forms of attention against float64, and the rule that chooses between them."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from sjepa_kernels import _dispatch, attention, self_attention, use
from sjepa_kernels.attention.cpu import PROCESSOR_HAS_CODE, PROCESSOR_HAS_FLOAT_CODE, has_cpu_code
from sjepa_kernels.native import LIBRARY
from tests.kernels.cases import compiles

module = importlib.import_module("sjepa_kernels.attention.op")
FULL = torch.float32
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def random_qkv(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> list[Tensor]:
    batch, heads, tokens, width = shape
    qkv = torch.randn(3, batch, tokens, heads, width).to(device, dtype)
    return [x.transpose(1, 2).detach().requires_grad_() for x in qkv]


def outcome(leaves: list[Tensor], grad: Tensor, impl: str) -> list[Tensor]:
    # Elsewhere "cpu" would be the reference, and a comparison with it could not fail.
    assert impl != "cpu" or has_cpu_code(*leaves[:2])
    out = attention(*leaves, impl=impl)
    return [out, *torch.autograd.grad(out, leaves, grad.to(out))]


def by_definition(leaves: list[Tensor], grad: Tensor) -> list[Tensor]:
    q, k, v = (x.detach().double().requires_grad_() for x in leaves)
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k) / q.shape[-1] ** 0.5
    weights = (scores - scores.logsumexp(-1, keepdim=True)).exp()
    out = torch.einsum("bhnm,bhmd->bhnd", weights, v)
    return [out, *torch.autograd.grad(out, [q, k, v], grad.double())]


@pytest.mark.parametrize("impl", ["auto", "torch", "sdpa", "explicit"])
@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float64, 1e-13), (torch.float32, 2e-6), (torch.bfloat16, 1.5e-2)],
    ids=["float64", "float32", "bfloat16"],
)
@pytest.mark.parametrize("shape", [(2, 3, 37, 16), (1, 2, 150, 32), (1, 1, 1, 8)], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_value_and_gradients(
    device: str, shape: tuple[int, ...], dtype: torch.dtype, bound: float, impl: str
) -> None:
    torch.manual_seed(0)
    leaves = random_qkv(shape, dtype, device)
    grad = torch.randn(shape, device=device).to(dtype)
    truths = by_definition(leaves, grad)
    for ours, truth in zip(outcome(leaves, grad, impl), truths, strict=True):
        assert ours.dtype == dtype
        # One token has no gradient to q and k; what remains there is rounding.
        assert (ours.double() - truth).norm() <= bound * max(truth.norm(), truths[0].norm())


@pytest.mark.parametrize("width", [33, 64, 80, 96, 128])
def test_what_is_taken_by_itself_is_as_exact_as_sdpa(width: int) -> None:
    """In bfloat16 on a CPU, also where the C++ code has no heads of this width."""
    torch.manual_seed(0)
    leaves = random_qkv((2, 3, 60, width), torch.bfloat16, "cpu")
    grad = torch.randn(2, 3, 60, width).bfloat16()
    exact = [x.detach().double().requires_grad_() for x in leaves]
    truths = outcome(exact, grad.double(), "sdpa")
    ours, sdpa = (outcome(leaves, grad, impl) for impl in ("auto", "sdpa"))
    for mine, theirs, truth in zip(ours, sdpa, truths, strict=True):
        error, allowed = (mine.double() - truth).norm(), (theirs.double() - truth).norm()
        assert error <= 1.1 * allowed


@pytest.mark.parametrize("tokens", [40, 160])
def test_explicit_in_bfloat16_keeps_the_error_of_a_few_roundings(tokens: int) -> None:
    torch.manual_seed(0)
    leaves = random_qkv((4, 2, tokens, 32), torch.bfloat16, "cpu")
    grad = torch.randn(4, 2, tokens, 32)
    truths = by_definition(leaves, grad.bfloat16())
    explicit, sdpa = (outcome(leaves, grad, impl) for impl in ("explicit", "sdpa"))
    for ours, theirs, truth in zip(explicit, sdpa, truths, strict=True):
        error, of_sdpa = ((x.double() - truth).norm() for x in (ours, theirs))
        assert error <= 2.5 * of_sdpa
        assert error <= 7e-3 * truth.norm()


HAS_CPU = pytest.mark.skipif(not PROCESSOR_HAS_CODE, reason="needs C++ and AVX-512 bfloat16")
CPU_SHAPES = [
    (2, 3, 37, 37, 16), (1, 2, 150, 150, 32), (2, 8, 75, 75, 32), (1, 1, 750, 750, 32),
    (1, 2, 13, 29, 48), (2, 1, 64, 5, 64), (1, 2, 1, 40, 32), (1, 1, 1, 1, 32), (1, 1, 24, 33, 16),
]  # fmt: skip


HAS_FLOAT = pytest.mark.skipif(not PROCESSOR_HAS_FLOAT_CODE, reason="needs C++ and AVX-512 or AVX2")


def cpu_leaves(
    shape: tuple[int, ...], scale: float = 1.0, dtype: torch.dtype = torch.bfloat16
) -> list[Tensor]:
    """Queries, keys and values cut out of wider arrays, as a fused projection leaves them."""
    batch, heads, queries, keys, width = shape
    leaves = []
    for tokens in (queries, keys, keys):
        wide = (scale * torch.randn(batch, tokens, heads, 3 * width)).to(dtype)
        leaves.append(wide[..., width : 2 * width].transpose(1, 2).detach().requires_grad_())
    return leaves


@HAS_CPU
@pytest.mark.parametrize("scale", [1.0, 6.0], ids=["flat", "peaked"])
@pytest.mark.parametrize("shape", CPU_SHAPES, ids=str)
def test_cpu_is_as_close_to_the_truth_as_sdpa(shape: tuple[int, ...], scale: float) -> None:
    torch.manual_seed(0)
    leaves = cpu_leaves(shape, scale)
    grad = torch.randn(*shape[:3], shape[4]).bfloat16()
    truths = by_definition(leaves, grad)
    ours, sdpa = (outcome(leaves, grad, impl) for impl in ("cpu", "sdpa"))
    for mine, theirs, truth in zip(ours, sdpa, truths, strict=True):
        error, of_sdpa = ((x.double() - truth).norm() for x in (mine, theirs))
        # Peaked rows of one key have no gradient to q and k but rounding.
        assert error <= 1.1 * of_sdpa + 1e-3 * truth.norm() + 2e-3 * truths[0].norm()


@pytest.fixture(params=[16, 8, 1])
def lanes(request: pytest.FixtureRequest) -> Iterator[int]:
    """Floats in a vector: what this processor has, and the narrower ones."""
    assert LIBRARY is not None
    if LIBRARY.sjepa_limit_lanes(request.param) != request.param:
        pytest.skip("this processor has no such vectors")
    yield request.param
    LIBRARY.sjepa_limit_lanes(16)


@HAS_FLOAT
@pytest.mark.parametrize("scale", [1.0, 6.0], ids=["flat", "peaked"])
@pytest.mark.parametrize("shape", CPU_SHAPES, ids=str)
def test_cpu_in_float32_is_exact_to_its_rounding(
    shape: tuple[int, ...], scale: float, lanes: int
) -> None:
    torch.manual_seed(0)
    leaves = cpu_leaves(shape, scale, FULL)
    grad = torch.randn(*shape[:3], shape[4])
    truths = by_definition(leaves, grad)
    largest = max(truth.norm() for truth in truths)
    for ours, truth in zip(outcome(leaves, grad, "cpu"), truths, strict=True):
        assert ours.dtype == FULL
        # Scores of 6 x 6 standard deviations carry a relative error of the exponent's size.
        error = (ours.double() - truth).norm()
        assert error <= 2e-6 * scale**2 * truth.norm() + 1e-6 * largest


@HAS_FLOAT
def test_float32_does_not_depend_on_threads_nor_on_what_lies_beside() -> None:
    torch.manual_seed(0)
    leaves = cpu_leaves((3, 2, 50, 70, 32), 1.0, FULL)
    grad = torch.randn(3, 2, 50, 32)
    alone = outcome(leaves, grad, "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    several = outcome(leaves, grad, "cpu")
    torch.set_num_threads(threads)
    for one, other in zip(alone, several, strict=True):
        assert torch.equal(one, other)
    dense = [x.detach().contiguous().requires_grad_() for x in leaves]
    for one, other in zip(alone, outcome(dense, grad, "cpu"), strict=True):
        assert torch.equal(one, other)


@HAS_FLOAT
def test_keys_that_score_far_below_zero_leave_no_trace_of_padding() -> None:
    """Padding scores 0: without a mask its weight would be infinite beside scores of -1,000."""
    torch.manual_seed(0)
    q, k, v = (x.detach() for x in cpu_leaves((1, 1, 5, 7, 16), 1.0, FULL))
    leaves = [x.requires_grad_() for x in (q.abs() * 40, -k.abs() * 40, v)]
    grad = torch.randn(1, 1, 5, 16)
    truths = by_definition(leaves, grad)
    for ours, truth in zip(outcome(leaves, grad, "cpu"), truths, strict=True):
        assert ours.isfinite().all()
        assert (ours.double() - truth).norm() <= 1e-3 * max(truth.norm(), truths[0].norm())


@HAS_FLOAT
def test_a_query_that_is_not_a_number_stays_alone() -> None:
    q, k, v = (x.detach().clone() for x in cpu_leaves((1, 2, 30, 40, 32), 1.0, FULL))
    q[0, 1, 17, 3] = math.nan
    out = attention(q, k, v, impl="cpu")
    assert out[0, 1, 17].isnan().all() and out.isnan().sum() == 32


@HAS_CPU
def test_cpu_op_returns_the_logarithm_of_the_sum_of_weights() -> None:
    q, k, v = (x.detach() for x in cpu_leaves((1, 2, 5, 7, 16)))
    _, lse = torch.ops.sjepa.attention_cpu(q, k, v)
    log_sum = ((q.double() @ k.double().mT) / 4).logsumexp(-1) / math.log(2)
    torch.testing.assert_close(lse.double(), log_sum, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.bfloat16, marks=HAS_CPU), pytest.param(FULL, marks=HAS_FLOAT)]
)
@pytest.mark.parametrize("first", [0, 4, 40])
def test_packed_cpu_op_writes_one_gradient_with_the_values_of_three(
    first: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    packed = torch.randn(3, 41, 3, 2, 32).to(dtype).requires_grad_()
    grad = torch.randn(3, 41 - first, 2, 32).to(dtype)
    out = self_attention(packed, first=first, impl="auto")
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    truth = attention(q[:, :, first:], k, v, impl="cpu").transpose(1, 2)
    assert torch.equal(out, truth) and out.flatten(2).data_ptr() == out.data_ptr()
    ours, theirs = (torch.autograd.grad(x, packed, grad)[0] for x in (out, truth))
    assert torch.equal(ours, theirs) and ours.is_contiguous()


class Taken:
    """Replaces each form of attention by one that notes its name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        monkeypatch.setattr(module, "has_cpu_code", lambda q, k: q.shape[-1] == 16)
        monkeypatch.setattr(_dispatch, "LIBRARY", object())
        monkeypatch.setattr(_dispatch, "_default", "auto")
        for form, name in {
            "cpu": "_cpu",
            "explicit": "_explicit",
            "xformers": "_xformers",
            "sdpa": "scaled_dot_product_attention",
        }.items():
            monkeypatch.setattr(module, name, self._noting(form))
        packed = self._noting("cpu")
        monkeypatch.setattr(
            module, "self_attention_cpu", lambda qkv, first: (packed(qkv[:, first:, 0], qkv, qkv),)
        )

    def _noting(self, form: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def noted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.names.append(form)
            return q

        return noted

    def by(self, width: int, tokens: int = 4, dtype: torch.dtype = FULL, **options: str) -> str:
        """Return the form that both ops take for inputs of this kind."""
        attention(*(torch.zeros(1, 1, tokens, width, dtype=dtype) for _ in range(3)), **options)
        self_attention(torch.zeros(1, tokens, 3, 1, width, dtype=dtype), **options)
        plain, packed = self.names
        self.names.clear()
        assert plain == packed
        return plain


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Taken:
    return Taken(monkeypatch)


def test_rule_of_auto(taken: Taken) -> None:
    assert taken.by(16) == "cpu"
    assert taken.by(8, tokens=40, dtype=torch.bfloat16) == "sdpa"
    assert taken.by(8, tokens=40) == "sdpa"


@pytest.mark.parametrize("way", ["argument", "use", "environment"])
@pytest.mark.parametrize(
    ("impl", "with_code", "without"),
    [("auto", "cpu", "sdpa"), ("torch", "sdpa", "sdpa"), ("cpu", "cpu", "sdpa")],
)
def test_names_that_all_ops_share(
    impl: str,
    with_code: str,
    without: str,
    way: str,
    taken: Taken,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if way == "argument":
        assert taken.by(16, impl=impl) == with_code and taken.by(8, impl=impl) == without
    elif way == "use":
        with use(impl):
            assert taken.by(16) == with_code and taken.by(8) == without
    else:
        monkeypatch.setattr(_dispatch, "_default", impl)
        assert taken.by(16) == with_code and taken.by(8) == without


@pytest.mark.parametrize("impl", ["sdpa", "explicit", "xformers"])
def test_names_of_its_own_beat_use(impl: str, taken: Taken) -> None:
    with use("cpu"):
        assert taken.by(16, impl=impl) == taken.by(8, impl=impl) == impl


def test_argument_beats_use_beats_environment(
    taken: Taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_dispatch, "_default", "torch")
    assert taken.by(16) == "sdpa"
    with use("cpu"):
        assert taken.by(16) == "cpu"
        assert taken.by(16, impl="torch") == "sdpa"
    assert taken.by(16) == "sdpa"


def test_triton_for_the_other_ops_is_sdpa_here(
    taken: Taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    with use("triton"):
        assert taken.by(16) == taken.by(8) == "sdpa"
    monkeypatch.setattr(_dispatch, "_default", "triton")
    assert taken.by(16) == "sdpa"


def test_cpu_that_cannot_run_names_the_fix(taken: Taken, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = [torch.zeros(1, 1, 4, 16, device="meta") for _ in range(3)]
    with pytest.raises(ValueError, match="impl: 'cpu' with tensors on meta; use"):
        attention(*elsewhere, impl="cpu")
    monkeypatch.setattr(_dispatch, "LIBRARY", None)
    with pytest.raises(ValueError, match="impl: 'cpu' without the C"), use("cpu"):
        taken.by(8)


def test_unknown_name_in_the_environment_is_refused(
    taken: Taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_dispatch, "_default", "sdpa")
    with pytest.raises(ValueError, match="impl: 'sdpa'; choose one of auto, triton, cpu, torch"):
        taken.by(8)


@compiles
def test_compiled_values_equal_eager() -> None:
    torch.manual_seed(0)
    leaves = random_qkv((2, 2, 9, 8), torch.float32, "cpu")
    for impl in ("sdpa", "explicit"):
        compiled = torch.compile(attention, fullgraph=True)(*leaves, impl=impl)
        torch.testing.assert_close(compiled, attention(*leaves, impl=impl))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_xformers_equals_sdpa() -> None:
    pytest.importorskip("xformers.ops", reason="xformers is not installed")
    leaves = random_qkv((2, 4, 75, 32), torch.bfloat16, "cuda")
    ours, sdpa = (attention(*leaves, impl=name) for name in ("xformers", "sdpa"))
    torch.testing.assert_close(ours, sdpa, rtol=2e-2, atol=2e-2)
