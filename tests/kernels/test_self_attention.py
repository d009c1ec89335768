"""Attention of packed tokens: one packed gradient, and that of the bias from the same pass."""

from __future__ import annotations

import importlib
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
    compiles,
    in_float64,
    leaves_of,
)

backends = importlib.import_module("sjepa_kernels.attention.backends")
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
    leaves = leaves_of(place, (batch, tokens, 24), (columns, 24), (columns,), dtype=dtype)
    exact = in_float64(leaves)
    form = "auto" if place.impl == "torch" else "sdpa"
    with use("torch" if place.impl == "torch" else "auto"):
        ours = layer(*leaves, heads, first=first, impl=form)
    plain, truth = plain_and_true(leaves, exact, heads, first)
    assert_learns_within_budget(ours, plain, truth, leaves, exact)


@compiles
@pytest.mark.parametrize("bias_learns", [True, False])
def test_compiled_layer_equals_eager(place: Place, bias_learns: bool) -> None:
    leaves = leaves_of(place, (2, 9, 24), (96, 24), (96,))
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
    assert path.read_text() == backends.PATH.read_text() and backends.load_table(path) == {}


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
        assert set(both) <= {"sdpa", *backends.BACKENDS}


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
    shapes = (2, tokens, 64), (384, 64), (384,)
    leaves = leaves_of(place, *shapes, dtype=torch.bfloat16)
    exact = in_float64(leaves)
    ours = layer(*leaves, heads=4, first=5, impl=impl)
    plain, truth = plain_and_true(leaves, exact, 4, 5)
    assert_learns_within_budget(ours, plain, truth, leaves, exact)
