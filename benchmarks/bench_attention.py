"""Attention forward and backward at the sizes of the student, and of predictor and teacher.

`pytest benchmarks/bench_attention.py --benchmark-only`, in bfloat16. Each row checks its values
against float64 before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.conftest import Timed
from sjepa_kernels import attention

SEQUENCES = 256 if torch.cuda.is_available() else 4
HEADS, WIDTH = 8, 32
FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "sdpa": scaled_dot_product_attention,
    "explicit": lambda q, k, v: attention(q, k, v, impl="explicit"),
    "ours": attention,
}


@pytest.mark.benchmark(group="attention, bfloat16, forward and backward, 8 heads of 32")
@pytest.mark.parametrize("tokens", [75, 750])
@pytest.mark.parametrize("variant", FORMS)
def test_attention(timed: Timed, device: torch.device, variant: str, tokens: int) -> None:
    """PyTorch's own choice of kernel, matmul-softmax-matmul, and the library's choice."""
    torch.manual_seed(0)
    shape = (SEQUENCES, HEADS, tokens, WIDTH)
    q, k, v, grad = (torch.randn(shape, device=device).bfloat16() for _ in range(4))
    truth = scaled_dot_product_attention(*(x[:2].double() for x in (q, k, v)))
    form = FORMS[variant]
    error = (form(q[:2], k[:2], v[:2]).double() - truth).norm() / truth.norm()
    assert error < 1e-2
    for x in (q, k, v):
        x.requires_grad_()

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(form(q, k, v), (q, k, v), grad)

    timed(step, dtype=torch.bfloat16, rounds=15, warmup=5, sequences=SEQUENCES)
