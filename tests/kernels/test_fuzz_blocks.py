"""Random calls of the ops on tokens and hidden states: right against float64."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear

from sjepa_kernels import (
    ContextualizedTargets,
    accumulate_normalized_,
    attention,
    fused_mlp,
    pack_tokens,
    residual_layer_norm,
    scatter_mask_tokens,
    self_attention,
)
from tests.kernels.cases import Place, gradients
from tests.kernels.fuzzing import (
    FLOATS,
    HALVES,
    Draw,
    assert_all_rounded,
    fuzz,
    normal,
    one_of,
    random_ids,
    size,
    whole,
)


@fuzz
@given(data=st.data())
def test_token_ops(place: Place, data: Draw) -> None:
    """Also ids that repeat (pack), tables and tokens of different dtypes, no tokens at all."""
    batch, segments, joints = size(data), size(data), size(data)
    width, tokens = one_of(data, 0, 1, 3, 16, 33, 260), segments * joints
    kept = size(data, 0, tokens)
    shapes = [(batch, kept, width), (width,), (segments, width), (joints, width)]
    leaves = [whole(data, place, s, one_of(data, *FLOATS)).requires_grad_() for s in shapes]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    visible, mask_token, temporal, spatial = exact
    position = (temporal[:, None] + spatial[None]).flatten(0, 1)
    if data.draw(st.booleans(), label="pack"):
        masked = size(data, 0, tokens + 2) if tokens else 0
        keep = random_ids(data, place, (batch, kept), tokens, distinct=False)
        hide = random_ids(data, place, (batch, masked), tokens, distinct=False)
        out = pack_tokens(*leaves[:2], keep, hide, *leaves[2:], impl=place.impl)
        content = torch.cat([visible, mask_token.expand(batch, masked, width)], dim=1)
        truth = content + position[torch.cat([keep.long(), hide.long()], dim=1)]
    else:
        keep = random_ids(data, place, (batch, kept), tokens, distinct=True)
        out = scatter_mask_tokens(*leaves[:2], keep, *leaves[2:], impl=place.impl)
        hit = (keep[:, :, None] == torch.arange(tokens, device=keep.device)).double()
        content = torch.einsum("bkn,bkd->bnd", hit, visible)
        truth = content + (1 - hit.sum(1))[:, :, None] * mask_token + position
    grad = whole(data, place, tuple(out.shape), out.dtype)
    assert_all_rounded(out, leaves, truth, exact, grad)


@fuzz
@given(data=st.data())
def test_attention(data: Draw) -> None:
    batch, heads, queries = size(data), size(data), size(data, 0, 9)
    keys, width = size(data, 1, 9), one_of(data, 1, 3, 8, 16)
    dtype, place = one_of(data, *FLOATS), Place("cpu", "torch")
    leaves = [
        normal(data, place, (batch, heads, n, width), dtype).requires_grad_()
        for n in (queries, keys, keys)
    ]
    out = attention(*leaves, impl=one_of(data, "auto", "sdpa", "explicit"))
    exact = [x.detach().double().requires_grad_() for x in leaves]
    scores = torch.einsum("bhnd,bhmd->bhnm", *exact[:2]) / width**0.5
    truth = (scores - scores.logsumexp(-1, keepdim=True)).exp() @ exact[2]
    grad = normal(data, place, tuple(out.shape), dtype)
    assert out.shape == truth.shape and out.dtype == dtype
    bound = {torch.float64: 1e-13, torch.float32: 4e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}
    scale = max(truth.norm(), grad.double().norm(), *(x.norm() for x in exact))
    pairs = zip(gradients(out, leaves, grad), gradients(truth, exact, grad.double()), strict=True)
    for got, true in [(out, truth), *pairs]:
        assert (got.double() - true).norm() <= bound[dtype] * scale


@fuzz
@given(data=st.data())
def test_self_attention_is_attention_of_the_unpacked(data: Draw) -> None:
    batch, heads, tokens = size(data), size(data), size(data, 1, 9)
    width, dtype, place = one_of(data, 1, 8, 16), one_of(data, *FLOATS), Place("cpu", "torch")
    first = size(data, 0, tokens - 1)
    packed = normal(data, place, (batch, tokens, 3, heads, width), dtype).requires_grad_()
    impl = one_of(data, "auto", "sdpa", "explicit")
    out = self_attention(packed, first=first, impl=impl)
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    truth = attention(q[:, :, first:], k, v, impl=impl).transpose(1, 2)
    assert torch.equal(out, truth)
    grad = normal(data, place, tuple(out.shape), dtype)
    ours, theirs = (gradients(x, [packed], grad)[0] for x in (out, truth))
    assert torch.equal(ours, theirs)


def assert_norms_close(found: list[Tensor], truth: list[Tensor], eps: float, spread: float) -> None:
    """Each tensor within rounding: a norm multiplies that of its input by `spread` each way."""
    for k, (ours, true) in enumerate(zip(found, truth, strict=True)):
        assert ours.shape == true.shape, k
        if true.numel():
            allowed = 8 * eps * spread * max(float(true.detach().abs().max()), 1.0)
            assert ((ours.double() - true).abs() <= allowed).all(), k


def spread_of(x: Tensor, *axes: int) -> float:
    """The largest of |x| / sqrt(var + 1e-5): how much a norm magnifies a rounding of x."""
    if x.numel() == 0:
        return 1.0
    deviation = (x.var(axes, correction=0, keepdim=True) + 1e-5).sqrt()
    return max(float((x.abs() / deviation).max()), 1.0)


@fuzz
@given(data=st.data())
def test_residual_layer_norm(place: Place, data: Draw) -> None:
    """Any leading axes, branch, stream and parameters of different dtypes, any that learn."""
    lead = tuple(size(data) for _ in range(size(data, 0, 3)))
    width = one_of(data, 1, 2, 5, 16, 33, 130)
    shapes = [(*lead, width), (*lead, width), (width,), (width,)]
    # The interpreter casts float64 to bfloat16 wrongly, so no call has both.
    dtypes = one_of(data, [d for d in FLOATS if d != torch.bfloat16], [torch.float32, *HALVES])
    leaves = [normal(data, place, shape, one_of(data, *dtypes)) for shape in shapes]
    learns = [data.draw(st.booleans()) for _ in leaves]
    leaves = [x.requires_grad_(learn) for x, learn in zip(leaves, learns, strict=True)]
    exact = [x.detach().double().requires_grad_(x.requires_grad) for x in leaves]
    ours = residual_layer_norm(*leaves, impl=place.impl)
    total = exact[0] + exact[1]
    truth = layer_norm(total, (width,), exact[2], exact[3]), total
    assert ours[0].dtype == leaves[0].dtype and ours[1].dtype == leaves[1].dtype
    eps, spread = max(torch.finfo(x.dtype).eps for x in leaves), spread_of(total.detach(), -1)
    assert_norms_close(list(ours), list(truth), eps, spread)
    # The sum knows nothing of the parameters.
    learning = [k for k, y in enumerate(truth) if y.requires_grad]
    if learning:
        grads = [normal(data, place, shapes[0], ours[k].dtype) for k in learning]
        got, true = (
            torch.autograd.grad(
                [outputs[k] for k in learning],
                [x for x in inputs if x.requires_grad],
                [g.to(outputs[k].dtype) for g, k in zip(grads, learning, strict=True)],
                materialize_grads=True,
            )
            for outputs, inputs in ((ours, leaves), (truth, exact))
        )
        assert_norms_close(list(got), list(true), eps, 4 * spread**2 * width)


@fuzz
@given(data=st.data())
def test_fused_mlp(place: Place, data: Draw) -> None:
    """Any leading axes, also none, no hidden units, parameters of different dtypes."""
    lead = tuple(size(data) for _ in range(size(data, 0, 2)))
    width, hidden = one_of(data, 2, 5, 16, 33), one_of(data, 0, 1, 5, 16, 40)
    dtype = one_of(data, *FLOATS)
    shapes = [(width,), (width,), (hidden, width), (hidden,), (width, hidden), (width,)]
    leaves = [normal(data, place, (*lead, width), dtype)]
    leaves += [normal(data, place, s, one_of(data, dtype, torch.float32)) for s in shapes]
    leaves = [x.requires_grad_() for x in leaves]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    x, weight, bias, w1, b1, w2, b2 = exact
    truth = x + linear(gelu(linear(layer_norm(x, (width,), weight, bias), w1, b1)), w2, b2)
    out = fused_mlp(*leaves, impl=place.impl)
    assert out.dtype == dtype
    # Parameters are rounded to the products' dtype; sums have as many terms as rows or units.
    eps = max(torch.finfo(leaf.dtype).eps for leaf in leaves)
    spread = spread_of(x.detach(), -1) * (width + hidden)
    assert_norms_close([out], [truth], eps, spread)
    grad = normal(data, place, tuple(out.shape), dtype)
    got, true = gradients(out, leaves, grad), gradients(truth, exact, grad.double())
    assert_norms_close(got, true, eps, spread**2)


@fuzz
@given(data=st.data())
def test_contextualized_targets(place: Place, data: Draw) -> None:
    """Layers of different dtypes, any tokens of any sequence, then a total with a weight."""
    batch, tokens, layers = size(data), size(data), size(data, 1, 3)
    width, norm = one_of(data, 0, 1, 2, 5, 33, 70), one_of(data, "instance", "layer", "none")
    # A LayerNorm of one channel, or of zeros, is all rounding.
    final = width > 2 and not (norm == "instance" and tokens < 2) and data.draw(st.booleans())
    dtypes = [torch.float64] if data.draw(st.booleans()) else [torch.float32, *HALVES]
    hidden = [
        normal(data, place, (batch, tokens, width), one_of(data, *dtypes)) for _ in range(layers)
    ]
    masked = size(data, 0, tokens + 1) if tokens else 0
    ids = None
    if data.draw(st.booleans(), label="ids"):
        ids = random_ids(data, place, (batch, masked), tokens, distinct=False)
    ours = ContextualizedTargets(layers, norm, final_norm=final, impl=place.impl)
    for x in hidden:
        ours.add_(x)
    got = ours.finish(ids)
    axes = {"instance": 1, "layer": 2}
    normed = [x.double() for x in hidden]
    spread = 1.0
    if norm in axes and batch * tokens * width:
        spread = max(spread_of(x, axes[norm]) for x in normed)
        normed = [
            (x - x.mean(axes[norm], keepdim=True))
            / (x.var(axes[norm], correction=0, keepdim=True) + 1e-5).sqrt()
            for x in normed
        ]
    mean = torch.stack(normed).mean(0)
    truth = layer_norm(mean, (width,)) if final else mean
    if ids is not None:
        truth = truth[torch.arange(batch, device=truth.device)[:, None], ids.long()]
    wide = torch.float64 if dtypes == [torch.float64] else torch.float32
    assert got.dtype == wide
    eps = torch.finfo(wide).eps
    assert_norms_close([got], [truth], eps, spread * spread_of(mean, -1) if final else spread)
    weight = one_of(data, 0.25, -2.0, torch.tensor(0.5, device=place.device))
    total = torch.randn(batch, tokens, width).to(place.device, wide)
    expected = total.double() + float(weight) * normed[0]
    accumulate_normalized_(total, hidden[0], weight, norm=norm, impl=place.impl)
    assert_norms_close([total], [expected], eps, spread)
