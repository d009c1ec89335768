"""Scatter and pack of tokens against float64, in every implementation that runs here."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sjepa_kernels import pack_tokens, scatter_mask_tokens
from tests.kernels.cases import Place, assert_within_budget, compiles, gradients

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# B, S, V, D, K: odd sizes, no and all tokens visible, single everything, more ids than one block,
# more columns than one tile, a tenth of 750 tokens rounded either way.
SHAPES = [
    (2, 3, 5, 7, 4),
    (3, 2, 13, 40, 0),
    (2, 2, 3, 33, 6),
    (1, 1, 1, 1, 1),
    (1, 9, 15, 20, 131),
    (2, 2, 5, 260, 3),
    (1, 30, 25, 3, 74),
    (1, 30, 25, 3, 75),
]
OPS = ["scatter", "pack"]
Op = Callable[..., Tensor]


def random_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, device: str, ids: torch.dtype = torch.int64
) -> tuple[list[Tensor], Tensor]:
    batch, segments, joints, width, kept = shape
    order = torch.stack([torch.randperm(segments * joints) for _ in range(batch)]).to(device, ids)
    sizes = [(batch, kept, width), (width,), (segments, width), (joints, width)]
    return [torch.randn(s).to(device, dtype).requires_grad_() for s in sizes], order


def op_for(name: str, order: Tensor, kept: int, impl: str) -> Op:
    keep, hide = order[:, :kept], order[:, kept:]
    if name == "scatter":
        return lambda x, m, t, s: scatter_mask_tokens(x, m, keep, t, s, impl=impl)
    return lambda x, m, t, s: pack_tokens(x, m, keep, hide, t, s, impl=impl)


def by_definition(name: str, order: Tensor, leaves: list[Tensor], kept: int) -> Tensor:
    """The formula, token by token, in float64."""
    visible, mask_token, temporal, spatial = leaves
    joints = spatial.shape[0]
    rows = []
    for b in range(order.shape[0]):
        row = {}
        for place_, token in enumerate(order[b].tolist()):
            content = visible[b, place_] if place_ < kept else mask_token
            row[token] = content + temporal[token // joints] + spatial[token % joints]
        tokens = sorted(row) if name == "scatter" else order[b].tolist()
        rows.append(torch.stack([row[token] for token in tokens]))
    return torch.stack(rows)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients(place: Place, name: str, dtype: torch.dtype, shape: tuple) -> None:
    ids = torch.int32 if dtype == torch.float32 else torch.int64
    leaves, order = random_inputs(shape, dtype, place.device, ids)
    kept = shape[4]
    out = op_for(name, order, kept, place.impl)(*leaves)
    eager = op_for(name, order, kept, "torch")(*leaves)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    truth = by_definition(name, order, exact, kept)
    assert_within_budget(out, eager, truth, "output")
    grad = torch.randn(out.shape).to(out)
    compared = zip(
        gradients(out, leaves, grad),
        gradients(eager, leaves, grad),
        gradients(truth, exact, grad.double()),
        ["visible", "mask token", "temporal", "spatial"],
        strict=True,
    )
    for ours, theirs, true, what in compared:
        assert_within_budget(ours, theirs, true, f"gradient of {what}")


@pytest.mark.parametrize("name", OPS)
def test_every_subset_of_gradients(place: Place, name: str) -> None:
    leaves, order = random_inputs((2, 2, 3, 5, 2), torch.float64, place.device)
    op = op_for(name, order, 2, place.impl)
    out = op(*leaves)
    grad = torch.randn(out.shape, dtype=torch.float64).to(place.device)
    full = gradients(out, leaves, grad)
    for wanted in itertools.product([False, True], repeat=4):
        some = [x.detach().requires_grad_(w) for x, w in zip(leaves, wanted, strict=True)]
        out = op(*some)
        assert out.requires_grad == any(wanted)
        if any(wanted):
            expected = [g for g, w in zip(full, wanted, strict=True) if w]
            for got, g in zip(gradients(out, some, grad), expected, strict=True):
                torch.testing.assert_close(got, g, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", OPS)
def test_strided_inputs_and_expanded_gradient(place: Place, name: str) -> None:
    leaves, order = random_inputs((3, 2, 4, 6, 3), torch.float64, place.device)
    op = op_for(name, order, 3, place.impl)
    with torch.no_grad():
        turned = [x.mT.contiguous().mT if x.ndim > 1 else x.repeat(2)[::1][:6] for x in leaves]
        wide = [torch.stack([x, x], dim=-1)[..., 0] for x in turned]
    for x in wide:
        x.requires_grad_()
    assert not wide[0].is_contiguous()
    one = torch.ones((), dtype=torch.float64, device=place.device)
    out, plain = op(*wide), op(*leaves)
    assert torch.equal(out, plain)
    expanded = gradients(out, wide, one.expand_as(out))
    for got, expected in zip(
        expanded, gradients(plain, leaves, torch.ones_like(plain)), strict=True
    ):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("name", OPS)
def test_repeats_bitwise(place: Place, name: str) -> None:
    leaves, order = random_inputs((5, 3, 4, 20, 5), torch.float32, place.device)
    runs = []
    for _ in range(2):
        out = op_for(name, order, 5, place.impl)(*leaves)
        runs.append([out, *gradients(out, leaves, torch.cos(out.detach() * 9))])
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("name", OPS)
def test_empty_batch(place: Place, name: str) -> None:
    leaves, order = random_inputs((1, 2, 3, 4, 2), torch.float32, place.device)
    leaves[0] = leaves[0].detach()[:0].requires_grad_()
    out = op_for(name, order[:0], 2, place.impl)(*leaves)
    assert out.shape == (0, 6, 4)
    for leaf, grad in zip(leaves, gradients(out, leaves, torch.ones_like(out)), strict=True):
        assert torch.equal(grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("name", OPS)
def test_tables_without_rows(place: Place, name: str) -> None:
    leaves, order = random_inputs((2, 0, 3, 40, 0), torch.float32, place.device)
    out = op_for(name, order.view(2, 0), 0, place.impl)(*leaves)
    assert out.shape == (2, 0, 40)
    for leaf, grad in zip(leaves, gradients(out, leaves, torch.ones_like(out)), strict=True):
        assert torch.equal(grad, torch.zeros_like(leaf))


def test_pack_is_the_scattered_grid_in_packed_order(place: Place) -> None:
    leaves, order = random_inputs((2, 3, 4, 5, 5), torch.float64, place.device)
    grid = op_for("scatter", order, 5, place.impl)(*leaves)
    packed = op_for("pack", order, 5, place.impl)(*leaves)
    assert torch.equal(grid.gather(1, order[:, :, None].expand_as(grid)), packed)


def test_pack_may_leave_out_and_repeat_tokens(place: Place) -> None:
    leaves, _ = random_inputs((1, 2, 3, 4, 3), torch.float64, place.device)
    keep = torch.tensor([[1, 1, 4]], device=place.device)
    hide = torch.tensor([[4, 0]], device=place.device)
    args = (*leaves[:2], keep, hide, *leaves[2:])
    ours, eager = (pack_tokens(*args, impl=impl) for impl in (place.impl, "torch"))
    torch.testing.assert_close(ours, eager)
    grad = torch.randn(ours.shape, dtype=torch.float64).to(place.device)
    for got, expected in zip(
        gradients(ours, leaves, grad), gradients(eager, leaves, grad), strict=True
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", OPS)
def test_gradcheck(place: Place, name: str) -> None:
    leaves, order = random_inputs((2, 2, 2, 3, 2), torch.float64, place.device)
    assert torch.autograd.gradcheck(op_for(name, order, 2, place.impl), leaves)


@pytest.mark.parametrize("name", OPS)
def test_opcheck(place: Place, name: str) -> None:
    if place.impl != "triton":
        pytest.skip("the reference is plain PyTorch; only the kernels are registered")
    leaves, order = random_inputs((2, 2, 3, 5, 2), torch.float32, place.device)
    ids = (order[:, :2],) if name == "scatter" else (order[:, :2], order[:, 2:])
    registered = {
        "scatter": torch.ops.sjepa.scatter_mask_tokens,
        "pack": torch.ops.sjepa.pack_tokens,
    }
    torch.library.opcheck(registered[name].default, (*leaves[:2], *ids, *leaves[2:]))


@compiles
@pytest.mark.parametrize("name", OPS)
def test_compiled_values_equal_eager(place: Place, name: str) -> None:
    leaves, order = random_inputs((2, 2, 3, 5, 2), torch.float32, place.device)
    op = op_for(name, order, 2, place.impl)

    def step(*inputs: Tensor) -> Tensor:
        return op(*(2 * x for x in inputs)).square()

    eager, compiled = step(*leaves), torch.compile(step, fullgraph=True)(*leaves)
    torch.testing.assert_close(compiled, eager)
    grad = torch.randn(eager.shape).to(eager)
    for got, expected in zip(
        gradients(compiled, leaves, grad), gradients(eager, leaves, grad), strict=True
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"visible": torch.zeros(2, 2)}, ValueError, r"visible: \(2, 2\); expected \(B, K, D\)"),
        ({"mask": torch.zeros(4)}, ValueError, r"mask_token: \(4,\); expected"),
        ({"mask": torch.zeros(5, dtype=torch.int32)}, TypeError, "mask_token: torch.int32"),
        ({"keep": torch.zeros(2, 3, dtype=torch.int64)}, ValueError, r"ids_keep: \(2, 3\)"),
        ({"keep": torch.zeros(2, 2)}, TypeError, "ids_keep: torch.float32; pass an int32 or int64"),
        ({"keep": torch.tensor([[0, 6], [1, 2]])}, ValueError, r"ids_keep: .*must lie in 0\.\.5"),
        ({"hide": torch.tensor([[-1], [0]])}, ValueError, r"ids_mask: ids from -1"),
        ({"spatial": torch.zeros(3, 4)}, ValueError, r"position_spatial: \(3, 4\)"),
        ({"impl": "fast"}, ValueError, "impl: 'fast'; choose one of auto, triton, cpu, torch"),
    ],
)
def test_bad_input_is_named(change: dict, error: type[Exception], words: str) -> None:
    good = {
        "visible": torch.zeros(2, 2, 5),
        "mask": torch.zeros(5),
        "keep": torch.tensor([[0, 1], [2, 3]]),
        "hide": torch.tensor([[5], [0]]),
        "temporal": torch.zeros(2, 5),
        "spatial": torch.zeros(3, 5),
        "impl": "auto",
    }
    impl = (good | change)["impl"]
    args = [v for k, v in (good | change).items() if k != "impl"]
    with pytest.raises(error, match=words):
        pack_tokens(*args, impl=impl)
    if "hide" not in change:
        with pytest.raises(error, match=words):
            scatter_mask_tokens(*args[:3], *args[4:], impl=impl)


@pytest.mark.parametrize("name", OPS)
def test_kernels_turn_bad_ids_into_nan(place: Place, name: str) -> None:
    if place.impl != "triton":
        pytest.skip("the reference checks ids")
    leaves, order = random_inputs((2, 2, 3, 5, 2), torch.float32, place.device)
    order[1, 0] = 6
    ids = (order[:, :2],) if name == "scatter" else (order[:, :2], order[:, 2:])
    body = {"scatter": torch.ops.sjepa.scatter_mask_tokens, "pack": torch.ops.sjepa.pack_tokens}
    out = body[name](*(x.detach() for x in leaves[:2]), *ids, *(x.detach() for x in leaves[2:]))
    assert torch.isfinite(out[0]).all()
    assert torch.isnan(out[1] if name == "scatter" else out[1, 0]).all()
