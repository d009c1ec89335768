"""What the sections of the report measure of the device itself: ceilings and attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.report.book import Book, Row, timed
from sjepa_kernels import attention
from sjepa_kernels.attention.cpu import has_cpu_code


def ceilings(book: Book) -> None:
    """What a plain copy and large matrix products reach: nothing else can be faster."""
    on_gpu = book.device == "cuda"
    source = torch.randn((1 << 28) if on_gpu else (1 << 23), device=book.device)
    target = torch.empty_like(source)

    def copy() -> Row:
        figures = timed(lambda: target.copy_(source), book.device, rounds=20)
        return {**figures, "GB/s": 2 * source.numel() * 4e-6 / figures["ms"]}

    book.attempt(copy, what="copy, float32, read and written")
    size = 8192 if on_gpu else 512
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(size, size, device=book.device).to(dtype) for _ in range(2))

        def product(a: Tensor = a, b: Tensor = b) -> Row:
            figures = timed(lambda: a @ b, book.device, rounds=10, calls=5, most=5)
            return {**figures, "TFLOP/s": 2 * size**3 * 1e-9 / figures["ms"]}

        book.attempt(product, what=f"matmul {str(dtype)[6:]}, {size}")


Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def with_backend(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's attention by one backend, or an error if it cannot run here."""
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(q, k, v)


def flexible(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """FlexAttention without a mask."""
    from torch.nn.attention.flex_attention import flex_attention

    mixed: Tensor = flex_attention(q, k, v)
    return mixed


def in_cpp(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Our C++, and nothing else under its name."""
    if not has_cpu_code(q, k):
        raise ValueError("the C++ attention has no code for these inputs or this processor")
    return attention(q, k, v, impl="cpu")


def attention_forms(on_gpu: bool) -> dict[str, Attention]:
    """Every way to the same attention: ours, each backend of PyTorch's, FlexAttention."""
    forms: dict[str, Attention] = {
        f"sjepa_kernels, {name}": partial(attention, impl=name)
        for name in ("auto", "sdpa", "explicit", "xformers")
    }
    forms["sjepa_kernels, cpu"] = in_cpp
    kinds = {"flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION}
    kinds |= {"cuDNN": SDPBackend.CUDNN_ATTENTION, "math": SDPBackend.MATH}
    forms |= {f"SDPA, {name}": partial(with_backend, kind) for name, kind in kinds.items()}
    if on_gpu:
        forms["FlexAttention, compiled"] = torch.compile(flexible, dynamic=False)
    return forms


def relative(x: Tensor, truth: Tensor) -> float:
    """Relative L2 error."""
    return float((x.double() - truth).norm() / truth.norm())


def attention_section(book: Book) -> None:
    """All attention backends at the step's two shapes, with their error against float64.

    The error is that of two sequences, because the float64 scores of all would not fit.
    """
    on_gpu = book.device == "cuda"
    shapes = [(256, 8, 750, 32), (256, 8, 75, 32)] if on_gpu else [(2, 2, 150, 32), (2, 2, 15, 32)]
    for shape in shapes:
        torch.manual_seed(0)
        *leaves, grad = (
            torch.randn(shape, device=book.device, dtype=torch.bfloat16) for _ in range(4)
        )
        for x in leaves:
            x.requires_grad_()
        exact = [x.detach()[:2].double().requires_grad_() for x in leaves]
        with sdpa_kernel(SDPBackend.MATH):
            truth = scaled_dot_product_attention(*exact)
            truths = [truth, *torch.autograd.grad(truth, exact, grad[:2].double())]
        batch, heads, tokens, size = shape
        flops = 4 * batch * heads * tokens**2 * size
        for name, form in attention_forms(on_gpu).items():
            measure = partial(one_attention, book.device, form, [*leaves, grad], truths, flops)
            book.attempt(measure, needs=2, shape=list(shape), backend=name)


def one_attention(
    device: str, form: Attention, inputs: list[Tensor], truths: list[Tensor], flops: int
) -> Row:
    """Error, forward and forward with backward of one form, of q, k, v and the gradient."""
    *leaves, grad = inputs

    def both() -> list[Any]:
        out = form(*leaves)
        return [out, *torch.autograd.grad(out, leaves, grad)]

    values = [x[:2].detach() for x in both()]
    errors = [relative(x, truth.detach()) for x, truth in zip(values, truths, strict=True)]
    with torch.no_grad():
        forward = timed(lambda: form(*leaves), device, rounds=10, calls=5, most=1.5)
    whole = timed(both, device, rounds=10, calls=3, most=2.5)
    return {
        "forward_ms": forward["ms"],
        **whole,
        "forward TFLOP/s": flops * 1e-9 / forward["ms"],
        # The backward multiplies five pairs of matrices where the forward multiplies two.
        "TFLOP/s": 3.5 * flops * 1e-9 / whole["ms"],
        "error": errors[0],
        "gradient_error": max(errors[1:]),
    }
