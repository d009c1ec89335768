"""Attention of packed tokens: one packed gradient, and that of the bias from the same pass."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.functional import linear, scaled_dot_product_attention

from sjepa_kernels import self_attention, use
from tests.kernels.cases import (
    Place,
    assert_learns_within_budget,
    assert_within_budget,
    compiles,
    in_float64,
)

backends = importlib.import_module("sjepa_kernels.attention.backends")
fused = importlib.import_module("sjepa_kernels.attention.fused")
op = importlib.import_module("sjepa_kernels.attention.op")


def by_definition(qkv: Tensor, first: int) -> Tensor:
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    scores = torch.einsum("bhnd,bhmd->bhnm", q[:, :, first:], k) / qkv.shape[-1] ** 0.5
    return torch.einsum("bhnm,bhmd->bnhd", torch.softmax(scores, dim=-1), v)


def by_sdpa(qkv: Tensor, first: int) -> Tensor:
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return scaled_dot_product_attention(q[:, :, first:], k, v).transpose(1, 2)


def plain_and_true(
    leaves: list[Tensor], exact: list[Tensor], heads: int, first: int
) -> list[Tensor]:
    """SDPA and, in float64, the formula, behind a whole linear layer."""
    pairs = (by_sdpa, leaves), (by_definition, exact)
    return [f(linear(*x).unflatten(-1, (3, heads, -1)), first) for f, x in pairs]


def layer_leaves(
    place: Place, batch: int, tokens: int, columns: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Input, weight and bias of a layer whose output has a variance of about 2."""
    shapes = (batch, tokens, 24), (columns, 24), (columns,)
    x, weight, bias = (torch.randn(shape) for shape in shapes)
    found = [y.to(place.device, dtype) for y in (x, weight / 24**0.5, bias)]
    return [y.requires_grad_() for y in found]


def layer(x: Tensor, weight: Tensor, bias: Tensor, heads: int, **options: Any) -> Tensor:
    """A linear layer whose bias learns through the op behind it."""
    qkv = linear(x, weight, bias.detach()).unflatten(-1, (3, heads, -1))
    return self_attention(qkv, added_bias=bias, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "width", "first"),
    [(2, 41, 3, 20, 0), (3, 37, 2, 32, 5), (1, 1, 1, 8, 0), (70, 9, 1, 16, 8)],
)
def test_bias_learns_as_in_its_own_layer(
    place: Place, batch: int, tokens: int, heads: int, width: int, first: int, dtype: torch.dtype
) -> None:
    columns = 3 * heads * width
    leaves = layer_leaves(place, batch, tokens, columns, dtype)
    exact = in_float64(leaves)
    form = "auto" if place.impl == "torch" else "sdpa"
    with use("torch" if place.impl == "torch" else "auto"):
        ours = layer(*leaves, heads, first=first, impl=form)
    plain, truth = plain_and_true(leaves, exact, heads, first)
    assert_learns_within_budget(ours, plain, truth, leaves, exact)


KERNEL = [
    # Sequences, tokens, heads, width, first.
    (1, 1, 1, 16, 0), (2, 2, 2, 32, 1), (2, 74, 1, 32, 0), (1, 75, 2, 32, 7), (1, 127, 1, 16, 0),
    (1, 128, 1, 32, 127), (1, 129, 2, 32, 0), (1, 200, 1, 32, 150),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("batch", "tokens", "heads", "width", "first"), KERNEL)
def test_kernel_against_float64(
    place: Place, batch: int, tokens: int, heads: int, width: int, first: int, dtype: torch.dtype
) -> None:
    columns = 3 * heads * width
    leaves = layer_leaves(place, batch, tokens, columns, dtype)
    exact = in_float64(leaves)
    ours = layer(*leaves, heads, first=first, impl=place.impl)
    plain, truth = plain_and_true(leaves, exact, heads, first)
    assert_learns_within_budget(ours, plain, truth, leaves, exact)


@pytest.mark.slow
def test_kernel_at_the_length_of_a_clip(place: Place) -> None:
    leaves = layer_leaves(place, 1, 750, 96, torch.bfloat16)
    exact = in_float64(leaves)
    ours = layer(*leaves, 1, first=400, impl=place.impl)
    plain, truth = plain_and_true(leaves, exact, 1, 400)
    assert_learns_within_budget(ours, plain, truth, leaves, exact)


@pytest.mark.parametrize("tokens", [9, 20])
def test_kernel_in_float64(place: Place, tokens: int) -> None:
    """One tile and several: as exact as the formula, gradients too."""
    leaves = layer_leaves(place, 2, tokens, 96, torch.float64)
    ours = layer(*leaves, 2, first=3, impl=place.impl)
    truth = by_definition(linear(*leaves).unflatten(-1, (3, 2, -1)), 3)
    grad = torch.randn_like(truth)
    found, true = (torch.autograd.grad(x, leaves, grad) for x in (ours, truth))
    torch.testing.assert_close((ours, *found), (truth, *true), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("tokens", [50, 140])
@pytest.mark.parametrize("scale", [1e-3, 12.0, 60.0])
def test_flat_and_peaked_weights(place: Place, tokens: int, scale: float) -> None:
    """Scores of many hundreds, whose exponentials would overflow, and equal ones."""
    packed = (scale * torch.randn(1, tokens, 3, 1, 32)).to(place.device, torch.float16)
    packed[:, :, 2] /= scale
    leaves = [packed.requires_grad_()]
    exact = in_float64(leaves)
    ours = self_attention(leaves[0], impl=place.impl)
    plain, truth = by_sdpa(leaves[0], 0), by_definition(exact[0], 0)
    # A fused multiply-add leaves the largest weight a little beside 1: it is rounded as all are.
    extra = torch.finfo(torch.float16).eps / 2
    if scale > 50 and place.impl == "triton":
        # Weights that are made again from the logarithm of a sum are off by its last bit, which at
        # 20,000 is 1e-3; of a gradient that is a difference of such weights nothing is left. In the
        # interpreter it depends on the processor, whose NumPy may round both sides alike.
        assert_within_budget(ours, plain, truth, "output", extra)
        (grad,) = torch.autograd.grad(ours.sum(), leaves)
        assert torch.isfinite(grad).all()
        return
    assert_learns_within_budget(ours, plain, truth, leaves, exact, extra)


def test_queries_before_the_first_have_no_gradient(place: Place) -> None:
    """Exact zeros, in tiles of them alone and in one that has both."""
    packed = torch.randn(1, 150, 3, 1, 16, device=place.device).bfloat16().requires_grad_()
    out = self_attention(packed, first=140, impl=place.impl)
    (grad,) = torch.autograd.grad(out.square().sum(), packed)
    assert not grad[:, :140, 0].any() and grad[:, 140:, 0].any() and grad[:, :140, 1:].all()


def test_exponents_are_rebuilt_by_the_backward(place: Place) -> None:
    """What the forward leaves for it: log2 of the sum of weights."""
    if place.impl != "triton":
        pytest.skip("the kernel's own output")
    packed = torch.randn(1, 140, 3, 2, 16, device=place.device)
    _, lse = torch.ops.sjepa.self_attention_triton(packed, None, 3)
    q, k, _ = packed.double().permute(2, 0, 3, 1, 4)
    truth = ((q[:, :, 3:] @ k.mT) / 4).logsumexp(-1) / math.log(2)
    # Rows of 137 numbers lie in places of a multiple of 16.
    assert lse.shape == (1, 2, 144)
    torch.testing.assert_close(lse[:, :, :137].double(), truth, rtol=1e-6, atol=1e-6)


@compiles
@pytest.mark.parametrize("bias_learns", [True, False])
def test_compiled_kernel_equals_eager(place: Place, bias_learns: bool) -> None:
    leaves = layer_leaves(place, 2, 9, 96)
    leaves[2].requires_grad_(bias_learns)
    wanted = [x for x in leaves if x.requires_grad]
    found = []
    for run in (layer, torch.compile(layer, fullgraph=True)):
        out = run(*leaves, heads=2, first=3, impl=place.impl)
        found.append([out, *torch.autograd.grad(out, wanted, out.detach().cos())])
    torch.testing.assert_close(*found)


@compiles
@pytest.mark.parametrize("bias_learns", [True, False])
def test_compiled_layer_equals_eager(place: Place, bias_learns: bool) -> None:
    leaves = layer_leaves(place, 2, 9, 96)
    leaves[2].requires_grad_(bias_learns)
    wanted = [x for x in leaves if x.requires_grad]
    found = []
    for run in (layer, torch.compile(layer, fullgraph=True)):
        out = run(*leaves, heads=2, first=3, impl="sdpa")
        found.append([out, *torch.autograd.grad(out, wanted, out.detach().cos())])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("width", [4, 32])
def test_no_gradient_is_asked_for(place: Place, width: int) -> None:
    packed, bias = torch.randn(2, 5, 3, 2, width).to(place.device), torch.randn(6 * width)
    with torch.no_grad():
        out = self_attention(packed, added_bias=bias.to(place.device).requires_grad_())
    assert not out.requires_grad
    truth = by_definition(packed.double(), 0)
    torch.testing.assert_close(out.double(), truth, rtol=1e-5, atol=1e-5)


ROWS = [
    {"backend": "flash", "forward_ms": 1.0, "ms": 5.0},
    {"backend": "cudnn", "forward_ms": 0.5, "ms": 6.0},
    {"backend": "efficient", "error": "not on this card"},
]


def measured(dtype: str = "bfloat16", tokens: int = 750) -> list[dict[str, Any]]:
    return [row | {"dtype": dtype, "width": 32, "tokens": tokens} for row in ROWS]


def test_measured_rows_become_the_table(tmp_path: Path) -> None:
    rows = [*measured(), *measured(tokens=75)[:1], *measured("float32")[2:]]
    entries = backends.table_entries(rows, "card")
    path = tmp_path / "table.json"
    backends.save_table(entries, path)
    version = backends._TRITON
    assert backends.load_table(path) == {
        ("card", version, "bfloat16", 32, 75): ("flash", "flash"),
        ("card", version, "bfloat16", 32, 750): ("cudnn", "flash"),
    }
    assert len(path.read_text().splitlines()) == 6
    backends.save_table([], path)
    assert path.read_text() == '{\n "entries": []\n}\n' and backends.load_table(path) == {}


class Card:
    """What the choice reads of queries and keys on a card."""

    def __init__(self, tokens: int, learns: bool) -> None:
        self.device, self.dtype = torch.device("cuda", 0), torch.bfloat16
        self.shape, self.requires_grad = (2, 8, tokens, 32), learns


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of one card, which is the one that is here, with a good cuDNN."""
    monkeypatch.setattr(backends, "_CARDS", {0: "card"})
    key = "card", backends._TRITON, "bfloat16", 32, 750
    monkeypatch.setattr(backends, "_TABLE", {key: ("cudnn", "flash")})
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91501)


@pytest.mark.usefixtures("table")
def test_table_chooses_by_what_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(tokens: int = 750, learns: bool = False) -> str:
        card = Card(tokens, learns)
        return backends.measured_backend(card, card)

    assert chosen() == "cudnn" and chosen(learns=True) == "flash"
    with torch.no_grad():
        assert chosen(learns=True) == "cudnn"
    assert chosen(tokens=749) == "sdpa"
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91500)
    assert chosen() == "sdpa" and chosen(learns=True) == "flash"
    monkeypatch.setattr(backends, "_CARDS", {0: "another"})
    assert chosen() == "sdpa"


def test_committed_table_names_backends_that_exist() -> None:
    for both in backends.load_table().values():
        assert set(both) <= {"sdpa", "triton", *backends.BACKENDS}


def test_triton_means_the_kernel_where_it_takes_the_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "takes", lambda packed: packed.shape[-1] == 32)
    monkeypatch.setattr(op, "has_cpu_code", lambda q, k: False)
    card = Card(5, True)

    def chosen(width: int, impl: str = "auto") -> str:
        return op._choose_form(impl, card, card, torch.zeros(1, 5, 3, 1, width))

    with use("triton"):
        assert chosen(32) == "triton" and chosen(8) == "sdpa"
        assert op._choose_form("auto", card, card) == "sdpa"
    monkeypatch.setattr(op, "measured_backend", lambda q, k: "triton")
    assert chosen(32) == "triton" and chosen(8) == "sdpa"
    assert op._choose_form("auto", card, card) == "sdpa"


@pytest.mark.parametrize(
    ("shape", "dtype", "good"),
    [
        ((2, 750, 3, 8, 32), torch.bfloat16, True),
        ((2, 750, 3, 8, 48), torch.bfloat16, False),
        ((1, 1 << 20, 3, 64, 32), torch.bfloat16, False),
        ((2, 5, 3, 1, 16), torch.float8_e5m2, False),
    ],
)
def test_what_the_kernel_takes(
    shape: tuple[int, ...], dtype: torch.dtype, good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "INTERPRETED", True)
    monkeypatch.setattr(fused, "HAVE_TRITON", True)
    packed = torch.empty(shape, dtype=dtype, device="meta")
    assert fused.takes(packed) == good
    monkeypatch.setattr(fused, "INTERPRETED", False)
    assert not fused.takes(packed)


def test_auto_on_a_card_asks_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(op, "measured_backend", lambda q, k: asked.append((q, k)) or "flash")
    monkeypatch.setattr(op, "has_cpu_code", lambda q, k: False)
    q, k = Card(5, True), Card(7, True)
    assert op._choose_form("auto", q, k) == "flash"
    assert asked == [(q, k)]
    with use("torch"):
        assert op._choose_form("auto", q, k) == "sdpa"


@pytest.mark.parametrize(
    ("version", "keys", "refused"),
    [(91500, 750, True), (91501, 750, False), (91500, 768, False), (None, 750, True)],
)
def test_old_cudnn_is_refused_where_it_is_wrong(
    version: int | None, keys: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)
    monkeypatch.setattr(backends, "scaled_dot_product_attention", lambda *x: ran.append(x))
    card = Card(keys, False)
    if refused:
        with pytest.raises(ValueError, match=r"'cudnn' .* with 750 keys; .* 9\.15\.1"):
            backends.by_backend("cudnn", card, card, card)
    else:
        backends.by_backend("cudnn", card, card, card)
    assert len(ran) == (not refused)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("flash", SDPBackend.FLASH_ATTENTION),
        ("cudnn", SDPBackend.CUDNN_ATTENTION),
        ("efficient", SDPBackend.EFFICIENT_ATTENTION),
    ],
)
def test_a_backend_runs_alone(name: str, kind: SDPBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[SDPBackend]] = []

    def attention(*_: Any) -> None:
        seen.append(torch.nn.attention._cur_sdpa_kernel_backends())

    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    monkeypatch.setattr(backends, "scaled_dot_product_attention", attention)
    card = Card(750, False)
    backends.by_backend(name, card, card, card)
    assert seen == [[kind]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("tokens", [75, 750])
@pytest.mark.parametrize("impl", ["flash", "cudnn", "efficient"])
def test_backends_on_a_card(impl: str, tokens: int) -> None:
    place = Place("cuda", "triton")
    leaves = layer_leaves(place, 2, tokens, 384, torch.bfloat16)
    exact = in_float64(leaves)
    ours = layer(*leaves, heads=4, first=5, impl=impl)
    plain, truth = plain_and_true(leaves, exact, 4, 5)
    assert_learns_within_budget(ours, plain, truth, leaves, exact)


def test_a_backend_asked_for_by_name_does_not_bring_triton_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where Triton does not work everything is told to use the references."""
    monkeypatch.setattr(op, "HAVE_TRITON", True)
    monkeypatch.setattr(op, "INTERPRETED", True)
    qkv = torch.zeros(1, 4, 3, 1, 16)
    for impl in ("auto", "flash"):
        assert op._packs(impl, qkv)
        with use("torch"):
            assert not op._packs(impl, qkv)
    assert not op._packs("torch", qkv)
