# SPDX-License-Identifier: Apache-2.0
"""Softmax attention and the rule that chooses its form.

Shapes: B sequences, H heads, N tokens, d head width.
"""

import importlib

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sjepa_kernels._checks import bad_type, bad_value, check_float, check_same_device, check_tensors
from sjepa_kernels._dispatch import choose, default_impl
from sjepa_kernels._triton import HAVE_TRITON, INTERPRETED
from sjepa_kernels.attention.backends import BACKENDS, by_backend, measured_backend
from sjepa_kernels.attention.cpu import attention_cpu, has_cpu_code, self_attention_cpu
from sjepa_kernels.attention.fused import self_attention_triton, takes
from sjepa_kernels.attention.packed import unpack, unpack_one_gradient, with_added_bias

FORMS = ("sdpa", "explicit", "xformers", *BACKENDS)
CHOICES = ("auto", "triton", "cpu", "torch", *FORMS)


def attention(q_BHNd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor, *, impl: str = "auto") -> Tensor:
    """softmax(q k^T / sqrt(d)) v, differentiable.

    "auto" is `scaled_dot_product_attention`, except on a CPU. There it is "cpu", C++ that keeps the
    scores in cache, where d is 16, 32, 48 or 64 and the processor has vectors (float32: AVX-512 or
    AVX2) or multiplies bfloat16 (AVX-512). "explicit", two batched products around a softmax, was
    1.2 to 5 times as fast as SDPA in bfloat16 on such a processor for up to 448 tokens, but it
    rounds the scores to bfloat16: relative error 4.5e-3 where SDPA has 2.2e-3, and up to 11 times
    SDPA's at other widths. So it has to be asked for.

    "torch" is `scaled_dot_product_attention` too: it is PyTorch's own form, and unlike "explicit"
    it needs no memory for the scores. "cpu" is the same where the C++ code does not take the
    inputs. The Triton kernel takes packed tokens alone (`self_attention`): here `use("triton")` and
    `SJEPA_IMPL=triton` run `scaled_dot_product_attention`, whose kernels on CUDA are fused ones. On
    CUDA "auto" takes the backend that `backends.json` has as the fastest measured on this card, and
    SDPA's own choice where it has none.

    Args:
        q_BHNd: Queries.
        k_BHNd: Keys, (B, H, M, d).
        v_BHNd: Values, (B, H, M, d).
        impl: "auto", "cpu", "torch", "sdpa" (the same), "explicit" (the scores are materialised),
            "flash", "cudnn", "efficient" (that backend of SDPA alone; CUDA; cuDNN from 9.15.1 where
            M is no multiple of 128), or "xformers" (memory_efficient_attention; CUDA, half
            precision; needs the xformers extra).

    Returns:
        (B, H, N, d) in the dtype of the inputs.

    Raises:
        TypeError: An input is not floating point, or dtypes differ.
        ValueError: Shapes or devices do not fit, there are no keys, or `impl` is unknown or cannot
            run here.
    """
    _check(q_BHNd, k_BHNd, v_BHNd)
    form = _choose_form(impl, q_BHNd, k_BHNd)
    if form == "xformers":
        return _xformers(q_BHNd, k_BHNd, v_BHNd)
    if form == "cpu":
        return _cpu(q_BHNd, k_BHNd, v_BHNd)
    if form == "explicit":
        return _explicit(q_BHNd, k_BHNd, v_BHNd)
    if form in BACKENDS:
        return by_backend(form, q_BHNd, k_BHNd, v_BHNd)
    return scaled_dot_product_attention(q_BHNd, k_BHNd, v_BHNd)


def self_attention(
    qkv_BN3Hd: Tensor, *, first: int = 0, impl: str = "auto", added_bias: Tensor | None = None
) -> Tensor:
    """`attention` of tokens to each other, from the packed output of one linear layer.

    The gradient comes back packed too, in one pass: the C++ form and, on CUDA, the Triton kernels
    write it where that layer wants it.

    `impl="triton"`, and `use("triton")` for what it takes, is a kernel of our own for heads of 16
    or 32. Its backward repeats bitwise, which that of SDPA's backends on CUDA may not. Products
    take the dtype of the input and sum in float32 (float64 for float64); in float32 they are exact
    ones, never TF32, and therefore slow. Its backward makes the weights again from their float32
    logarithms: where scores are 20,000, those are off by 1e-3.

    Args:
        qkv_BN3Hd: Queries, keys and values of all tokens.
        first: The first token whose output is wanted, below N.
        impl: As in `attention`, or "triton".
        added_bias: The bias (3 H d,) that is in `qkv` already, of a layer that was given it
            detached. It changes no value; its gradient, the column sums of the packed gradient, is
            made in the pass that writes that gradient instead of in another one over it.

    Returns:
        (B, N - first, H, d) in the dtype of the input.

    Raises:
        TypeError: An input is not floating point.
        ValueError: The shape, device or `first` does not fit, or `impl` is unknown or cannot run
            here.
    """
    _check_packed(qkv_BN3Hd, first, added_bias)
    q, k, v = unpack(qkv_BN3Hd, first)
    form = _choose_form(impl, q, k, qkv_BN3Hd)
    if form == "triton":
        _check(q, k, v)
        found: Tensor = self_attention_triton(qkv_BN3Hd, added_bias, first)[0]
        return found
    if torch.is_grad_enabled():
        if form != "cpu" and _packs(impl, qkv_BN3Hd):
            q, k, v = unpack_one_gradient(qkv_BN3Hd, added_bias, first)
        elif added_bias is not None:
            qkv_BN3Hd = with_added_bias(qkv_BN3Hd, added_bias)
            q, k, v = unpack(qkv_BN3Hd, first)
    if form == "cpu":
        mixed: Tensor = self_attention_cpu(qkv_BN3Hd, first)[0]
    else:
        mixed = attention(q, k, v, impl=form)
    return mixed.transpose(1, 2)


def _packs(impl: str, qkv: Tensor) -> bool:
    """Whether the three gradients are packed by a Triton kernel."""
    # A backend of SDPA says nothing about Triton; that is what everything else was told.
    asked = impl if impl in ("torch", "triton", "cpu") else default_impl()
    return HAVE_TRITON and asked != "torch" and (qkv.device.type == "cuda" or INTERPRETED)


def _choose_form(impl: str, q_BHNd: Tensor, k_BHNd: Tensor, packed: Tensor | None = None) -> str:
    """Return "cpu", "triton" (of packed tokens alone) or one of `FORMS`."""
    if impl in FORMS:
        return impl
    if impl not in CHOICES:
        raise bad_value("impl", repr(impl), f"choose one of {', '.join(CHOICES)}")
    in_triton = packed is not None and takes(packed)
    if impl == "triton":
        if packed is None:
            fix = 'it takes packed tokens: call self_attention, or use "auto"'
            raise bad_value("impl", "'triton'", fix)
        choose(impl, q_BHNd.device)
        if not in_triton:
            fix = 'it takes heads of 16 or 32; use "auto"'
            raise bad_value("impl", f"'triton' with {tuple(packed.shape)}", fix)
        return "triton"
    asked = default_impl() if impl == "auto" else impl
    has_code = has_cpu_code(q_BHNd, k_BHNd)
    if asked == "auto":
        if has_code:
            return "cpu"
        fastest = measured_backend(q_BHNd, k_BHNd)
        return fastest if fastest != "triton" or in_triton else "sdpa"
    if asked == "triton":
        return "triton" if in_triton else "sdpa"
    return "cpu" if choose(asked, q_BHNd.device, cpu=has_code) == "cpu" else "sdpa"


def _explicit(q_BHNd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor) -> Tensor:
    scores = (q_BHNd * q_BHNd.shape[-1] ** -0.5) @ k_BHNd.transpose(-2, -1)
    if not torch.compiler.is_compiling():
        return torch.softmax(scores, dim=-1) @ v_BHNd
    # Written out, because Inductor replaces matmul-softmax-matmul by the very kernel that this
    # form is there to avoid. Dividing after the product also rounds once less.
    scores = scores.float()
    weights = (scores - scores.detach().amax(dim=-1, keepdim=True)).exp()
    mixed: Tensor = weights.to(v_BHNd.dtype) @ v_BHNd / weights.sum(dim=-1, keepdim=True)
    return mixed.to(v_BHNd.dtype)


def _cpu(q_BHNd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor) -> Tensor:
    mixed: Tensor = attention_cpu(q_BHNd, k_BHNd, v_BHNd)[0]
    return mixed


def _xformers(q_BHNd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor) -> Tensor:
    if q_BHNd.device.type != "cuda" or q_BHNd.dtype not in (torch.bfloat16, torch.float16):
        found = f"'xformers' with {q_BHNd.dtype} on {q_BHNd.device}"
        raise bad_value("impl", found, 'it needs half precision on CUDA; use "auto"')
    try:
        ops = importlib.import_module("xformers.ops")
    except ImportError as error:
        fix = "pip install 'sjepa-kernels[xformers]', or use \"auto\""
        raise bad_value("impl", f"'xformers' ({error})", fix) from error
    q, k, v = (x.transpose(1, 2) for x in (q_BHNd, k_BHNd, v_BHNd))
    try:
        mixed: Tensor = ops.memory_efficient_attention(q, k, v)
    except NotImplementedError as error:
        reason = " ".join(str(error).split())[:300]
        raise bad_value("impl", f"'xformers' ({reason})", 'use "auto"') from error
    return mixed.transpose(1, 2)


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    check_float("q", q)
    if not (q.dtype == k.dtype == v.dtype):
        raise bad_type("q, k, v", (q.dtype, k.dtype, v.dtype), "pass one dtype")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise bad_value(name, tuple(x.shape), "expected (B, H, N, d)")
    check_same_device(q.device, k=k, v=v)
    if k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        fix = "batch, heads and head width must agree, and keys and values must pair up"
        raise bad_value("q, k, v", (tuple(q.shape), tuple(k.shape), tuple(v.shape)), fix)
    if k.shape[2] == 0 or k.shape[3] == 0:
        raise bad_value("k", tuple(k.shape), "a softmax over nothing has no value; pass keys")


def _check_packed(qkv: Tensor, first: int, added_bias: Tensor | None) -> None:
    check_float("qkv", qkv)
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise bad_value("qkv", tuple(qkv.shape), "expected (B, N, 3, H, d)")
    if not 0 <= first < max(qkv.shape[1], 1):
        raise bad_value("first", first, f"expected 0 to {qkv.shape[1] - 1}")
    if added_bias is not None:
        bias = added_bias, (qkv.shape[2:].numel(),), "(3 H d,)"
        check_tensors(qkv.device, {"added_bias": bias})
