"""What the sections of the report measure of the device itself: ceilings and attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.report.book import Book, Row, captured, read_report, timed
from sjepa_kernels import self_attention
from sjepa_kernels.attention.backends import save_table, table_entries, take_over


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


# A row of the report names a backend as `impl` does; FlexAttention is no `impl`.
BACKENDS = ("flash", "cudnn", "efficient", "triton")
FLEX = "flex, compiled"
# The file of the fastest, beside the report.
TABLE = "attention.json"
# What a row's error may be, relative to float64 in the Euclidean norm: wrong values get no time.
MOST_WRONG = {torch.bfloat16: 1.5e-2, torch.float32: 1e-5}


def attend(qkv: Tensor, impl: str) -> Tensor:
    """Attention of packed tokens by one backend, or an error if it cannot run here."""
    return self_attention(qkv, impl=impl)


def flexible(qkv: Tensor) -> Tensor:
    """FlexAttention without a mask."""
    from torch.nn.attention.flex_attention import flex_attention

    mixed: Tensor = flex_attention(*qkv.permute(2, 0, 3, 1, 4)).transpose(1, 2)
    return mixed


def attention_forms(on_gpu: bool, dtype: torch.dtype) -> dict[str, Callable[[Tensor], Tensor]]:
    """Every way to the same attention that may be the fastest, by the name of its backend."""
    if not on_gpu:
        return {impl: partial(attend, impl=impl) for impl in ("auto", "sdpa", "explicit")}
    # In float32 PyTorch has one fused backend.
    names = ("auto", *BACKENDS) if dtype != torch.float32 else ("auto", "efficient", "triton")
    forms: dict[str, Callable[[Tensor], Tensor]] = {n: partial(attend, impl=n) for n in names}
    if dtype != torch.float32:
        forms[FLEX] = torch.compile(flexible, dynamic=False)
    return forms


def relative(x: Tensor, truth: Tensor) -> float:
    """Relative L2 error."""
    return float((x.double() - truth).norm() / truth.norm().clamp_min(1e-30))


def true_attention(qkv: Tensor, grad: Tensor) -> list[Tensor]:
    """Output and gradient by the formula, in float64."""
    exact = qkv.detach().double().requires_grad_()
    q, k, v = exact.permute(2, 0, 3, 1, 4)
    weights = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)
    out = (weights @ v).transpose(1, 2)
    return [out.detach(), *torch.autograd.grad(out, exact, grad.double())]


def attention_section(book: Book) -> None:
    """All attention backends at the step's two shapes, checked against float64 before they run.

    The check is that of two sequences, because the float64 scores of all would not fit. The fastest
    of each shape go to `attention.json` beside the report, in the form of the kernels' own
    `attention/backends.json`, which it can replace, and what is measured after it follows them:
    `auto`, which comes last, and the steps.
    """
    on_gpu = book.device == "cuda"
    shapes = [(256, 750, 8, 32), (256, 75, 8, 32)] if on_gpu else [(2, 150, 2, 32), (2, 15, 2, 32)]
    for dtype in (torch.bfloat16, torch.float32):
        forms = attention_forms(on_gpu, dtype)
        automatic = forms.pop("auto")
        for shape in shapes:
            torch.manual_seed(0)
            batch, tokens, heads, width = shape
            qkv = torch.randn(batch, tokens, 3, heads, width, device=book.device).to(dtype)
            grad = torch.randn(shape, device=book.device).to(dtype)
            truths = true_attention(qkv[:2], grad[:2])
            flops = 4 * batch * heads * tokens**2 * width
            facts = {"shape": list(shape), "tokens": tokens, "width": width}
            facts["dtype"] = str(dtype)[6:]
            given = {"qkv": qkv, "grad": grad, "truths": truths, "flops": flops}
            measure = partial(one_attention, book.device, **given)  # type: ignore[arg-type]
            for name, form in forms.items():
                book.attempt(partial(measure, form), needs=2, **facts, backend=name)
            if on_gpu:
                keep_fastest(book)
            book.attempt(partial(measure, automatic), needs=2, **facts, backend="auto")


def keep_fastest(book: Book) -> None:
    """Write the fastest backends of the rows so far beside the report, and follow them."""
    rows = read_report(book.path)["sections"][book.section]["rows"]
    ours = [row for row in rows if row["backend"] in BACKENDS]
    entries = table_entries(ours, torch.cuda.get_device_name())
    save_table(entries, book.path.with_name(TABLE))
    take_over(entries)


def device_time(run: Callable[[], object], device: str, calls: int, most: float) -> Row:
    """Time a function as in a step, which is one graph: without what Python takes to launch it."""
    if device != "cuda":
        return timed(run, device, rounds=10, calls=calls, most=most)
    figures = timed(captured(run, calls), device, rounds=10, most=calls * most)
    return figures | {key: figures[key] / calls for key in ("ms", "ms_min", "ms_max")}


def one_attention(
    device: str, form: Callable[[Tensor], Tensor],
    qkv: Tensor, grad: Tensor, truths: list[Tensor], flops: int,
) -> Row:  # fmt: skip
    """Error, forward and forward with backward of one form of packed tokens."""
    qkv = qkv.detach().requires_grad_()

    def both() -> list[Tensor]:
        out = form(qkv)
        return [out, *torch.autograd.grad(out, qkv, grad)]

    values = [x[:2].detach() for x in both()]
    errors = [relative(x, truth) for x, truth in zip(values, truths, strict=True)]
    if not max(errors) <= MOST_WRONG[qkv.dtype]:
        found = " and ".join(f"{error:.1e}" for error in errors)
        raise ValueError(f"wrong values: errors of output and gradient {found}")
    with torch.no_grad():
        forward = device_time(lambda: form(qkv), device, calls=5, most=1.5)
    whole = device_time(both, device, calls=3, most=2.5)
    return {
        "forward_ms": forward["ms"],
        **whole,
        "forward TFLOP/s": flops * 1e-9 / forward["ms"],
        # The backward multiplies five pairs of matrices where the forward multiplies two.
        "TFLOP/s": 3.5 * flops * 1e-9 / whole["ms"],
        "error": errors[0],
        "gradient_error": errors[1],
    }
