"""The counting rules on operations whose bytes are known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sjepa_kernels import EmaPlan, gelu_mlp, pack_tokens, self_attention
from tests.null_gpu.traffic import Traffic

R, D = 48, 64
FLOAT, HALF, LONG = 4, 2, 8


def floats(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device="cuda")


def counted(run: Callable[[], object]) -> Traffic:
    with Traffic() as traffic:
        run()
    return traffic


def x() -> Tensor:
    return floats(R, D)


@pytest.mark.parametrize(
    ("run", "bytes_"),
    [
        (lambda x: x + 1, 2 * R * D * FLOAT),
        (lambda x: x + x[0].expand(R, D), (2 * R + 1) * D * FLOAT),
        (lambda x: x.mul_(2), 2 * R * D * FLOAT),
        (lambda x: torch.add(x, 1, out=x), 2 * R * D * FLOAT),
        (lambda x: x.zero_(), R * D * FLOAT),
        (lambda x: x[:, : D // 2].copy_(x[:, D // 2 :]), R * D * FLOAT),
        (lambda x: x.bfloat16(), R * D * (FLOAT + HALF)),
        (lambda x: x.view(D, R).t()[:3].unsqueeze(0), 0),
        (lambda x: torch.empty_like(x), 0),
        (lambda x: x.sum(), R * D * FLOAT + FLOAT),
        (lambda x: torch.cat([x, x]), 4 * R * D * FLOAT),
        (lambda x: torch._foreach_mul_([x, x[0]], 2), 2 * (R + 1) * D * FLOAT),
    ],
)
def test_bytes_of_operations(run: Callable[[Tensor], object], bytes_: int) -> None:
    given = x()
    assert sum(row.bytes for row in counted(lambda: run(given)).rows) == bytes_


def test_gathers_count_what_they_touch() -> None:
    given, rows = x(), torch.arange(6, device="cuda")
    found = counted(lambda: given.index_select(0, rows))
    assert [row.bytes for row in found.rows] == [2 * 6 * D * FLOAT + 6 * LONG]
    source = floats(6, D)
    found = counted(lambda: given.index_copy_(0, rows, source))
    assert [row.bytes for row in found.rows] == [2 * 6 * D * FLOAT + 6 * LONG]


def test_products_have_sizes() -> None:
    layer = nn.Linear(D, 3 * D, device="cuda")
    given = x()
    traffic = counted(lambda: layer(given).sum().backward())
    products = [(row.sizes, row.bytes) for row in traffic.rows if row.group == "gemm"]
    forward = (R * D + 3 * D * D + 3 * D + 3 * R * D) * FLOAT
    # The gradient of a sum is one expanded number, so it counts as one.
    assert products[0] == ((1, R, 3 * D, D), forward)
    assert products[1][0] == (1, 3 * D, D, R)


def test_attention_is_one_operation() -> None:
    q = floats(2, 4, 16, 32, dtype=torch.bfloat16).requires_grad_()
    attend = nn.functional.scaled_dot_product_attention
    traffic = counted(lambda: attend(q, q, q).backward(q.detach()))
    forward, backward = (row for row in traffic.rows if row.group == "attention")
    tensor, statistics = q.numel() * HALF, 2 * 4 * 16 * FLOAT
    assert forward.sizes == (8, 16, 16, 32, 0)
    assert backward.sizes == (8, 16, 16, 32, 1)
    # q, k, v, o and what the softmax leaves; then o, its gradient and three more.
    assert forward.bytes == pytest.approx(4 * tensor + statistics, abs=64)
    assert backward.bytes == pytest.approx(8 * tensor + statistics, abs=64)


def test_kernels_of_ours_count_their_tensors() -> None:
    halves = [floats(2, 3, D, dtype=torch.bfloat16), floats(D)]
    keep, mask = (torch.zeros(2, n, dtype=torch.int32, device="cuda") for n in (3, 5))
    temporal, spatial = floats(4, D), floats(2, D)
    traffic = counted(lambda: pack_tokens(*halves, keep, mask, temporal, spatial))
    (row,) = traffic.rows
    assert (row.group, row.name) == ("ours", "tokens.pack._pack_forward_kernel")
    inputs = 2 * 3 * D * HALF + 2 * (3 + 5) * 4 + (1 + 4 + 2) * D * FLOAT
    # The stream has the dtype of its tables.
    assert row.bytes == inputs + 2 * 8 * D * FLOAT
    (variant,) = traffic.variants.values()
    assert variant.signature["mask_token"] == "*fp32"


def test_moving_average_counts_behind_its_addresses() -> None:
    plan = EmaPlan([floats(R, D)], [floats(R, D)], [floats(R, D, dtype=torch.bfloat16)])
    momentum = torch.tensor(0.9, device="cuda")
    plan.update_(momentum)
    rows = counted(lambda: plan.update_(momentum)).rows
    assert [row.bytes for row in rows if row.name == "ema._ema_kernel"] == [
        R * D * (3 * FLOAT + HALF)
    ]


def test_compiled_code_is_counted_as_compiled() -> None:
    run = torch.compile(lambda x: (x * 2 + 1).relu())
    given = x()
    run(given)
    (row,) = counted(lambda: run(given)).rows
    assert (row.group, row.bytes) == ("inductor", 2 * R * D * FLOAT)


def test_products_in_kernels_of_ours_have_sizes() -> None:
    x, hidden = floats(R, D, dtype=torch.bfloat16), 4 * D
    weights = [floats(hidden, D), floats(hidden), floats(D, hidden), floats(D)]
    run = torch.compile(lambda: gelu_mlp(x, *weights))
    run()
    # In compiled code the op's own linear layer is counted as what it is taken apart into.
    for call in (run, lambda: gelu_mlp(x, *weights)):
        rows = {row.name: row for row in counted(call).rows if row.sizes}
        assert rows["blocks.gelu_mlp._gelu_product_kernel"].sizes == (1, R, D, hidden)
        assert rows["blocks.gelu_mlp._gelu_product_kernel"].group == "ours"
        assert rows["addmm"].sizes == (1, R, hidden, D)


def test_our_attention_is_attention() -> None:
    qkv = floats(2, 750, 3, 4, 32, dtype=torch.bfloat16).requires_grad_()
    traffic = counted(lambda: self_attention(qkv, first=50, impl="triton").sum().backward())
    sizes = [row.sizes for row in traffic.rows if row.group == "attention" and row.sizes]
    assert sizes == [(8, 700, 750, 32, 0), (8, 700, 750, 32, 1)]
