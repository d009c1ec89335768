"""Attention forward and backward at the sizes of the student, and of predictor and teacher.

`pytest benchmarks/bench_attention.py --benchmark-only`, in bfloat16. Each row checks its values
against float64 before it is timed.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from benchmarks.conftest import Timed
from sjepa_kernels import self_attention

ON_GPU = torch.cuda.is_available()
SEQUENCES = 256 if ON_GPU else 4
HEADS, WIDTH = 8, 32
# PyTorch's own choice, matmul-softmax-matmul, the library's choice, and on a GPU each kernel alone.
IMPLS = {"sdpa": "sdpa", "explicit": "explicit", "ours": "auto"}
IMPLS |= {name: name for name in ("triton", "flash", "cudnn", "efficient") if ON_GPU}


@pytest.mark.benchmark(group="attention, bfloat16, forward and backward, 8 heads of 32")
@pytest.mark.parametrize("tokens", [75, 750])
@pytest.mark.parametrize("variant", IMPLS)
def test_attention(timed: Timed, device: torch.device, variant: str, tokens: int) -> None:
    """From the packed output of a linear layer, with the gradient of its bias."""
    torch.manual_seed(0)
    qkv = torch.randn(SEQUENCES, tokens, 3, HEADS, WIDTH, device=device).bfloat16()
    grad = torch.randn(SEQUENCES, tokens, HEADS, WIDTH, device=device).bfloat16()
    bias = torch.zeros(3 * HEADS * WIDTH, device=device, requires_grad=True)
    form = partial(self_attention, impl=IMPLS[variant])
    q, k, v = qkv[:2].double().permute(2, 0, 3, 1, 4)
    truth = (torch.softmax(q @ k.mT / WIDTH**0.5, dim=-1) @ v).transpose(1, 2)
    error = (form(qkv[:2]).double() - truth).norm() / truth.norm()
    assert error < 1e-2
    qkv.requires_grad_()

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(form(qkv, added_bias=bias), (qkv, bias), grad)

    timed(step, dtype=torch.bfloat16, rounds=15, warmup=5, sequences=SEQUENCES)
