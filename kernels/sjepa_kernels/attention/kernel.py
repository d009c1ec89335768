# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of attention from packed queries, keys and values, for narrow heads.

Scores are kept as base-2 exponents: weights are 2^(SCALE q.k - lse) with SCALE = log2(e) / sqrt(d)
and lse the logarithm to base 2 of their sum, which the forward leaves for the backward.

The backward has no atomics: a kernel that walks along the keys for each tile of queries makes dq
(and the row sums of out times its gradient), one that walks along the queries for each tile of keys
makes dk and dv. Together that is seven products and the exponentials twice, where one kernel that
adds its dq to memory takes five products and the exponentials once. But there either the order of
the additions is left to chance, or programs wait for each other, or one program does a whole head:
that one, with its dq in memory of its own, took 2.7 ms on an H100 where the two kernels take 1.7
(benchmarks/LOG.md), because 230 registers leave room for one program on an SM. Sequences that fit
into one tile need neither: one program makes all three gradients with five products.

Shapes: B sequences, H heads, N tokens of which the Q from `first` on have a query, d head width,
T tiles of a sequence, P the places of a head's Q numbers in `lse` and `delta`, a multiple of 16 so
that the compiler knows how they are aligned. Programs are numbered along the tiles, then heads,
then sequences, so that those that read the same keys run at the same time.
"""

from sjepa_kernels._triton import tl, triton


@triton.jit
def _rows(x, n, stride, WIDTH: tl.constexpr):
    """Addresses of the rows n of one head."""
    return x + n[:, None] * stride + tl.arange(0, WIDTH)[None, :]


@triton.jit
def _read(x, at, inside, MASKED: tl.constexpr, DOT: tl.constexpr):
    """Rows from place `at` on; zeros where they are not inside."""
    if MASKED:
        return tl.load(x + at, mask=inside[:, None], other=0.0).to(DOT)
    return tl.load(x + at).to(DOT)


@triton.jit
def _product(a, b, COMPUTE: tl.constexpr):
    return tl.dot(a, b, input_precision="ieee", out_dtype=COMPUTE)


@triton.jit
def _sequence(pid, T, H):
    """Tile, sequence and head of a program."""
    head = pid // T
    return pid % T, (head // H).to(tl.int64), head % H


@triton.jit
def _forward_step(
    q, k, v, start, N, stride, mixed, top, total,
    MASKED: tl.constexpr, SCALE: tl.constexpr,
    COMPUTE: tl.constexpr, DOT: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Take in a tile of keys: sum of values, largest exponent and sum of weights so far."""
    inside = start + tl.arange(0, BN) < N
    at = start * stride
    x = _product(q, tl.trans(_read(k, at, inside, MASKED, DOT)), COMPUTE)
    if MASKED:
        x = tl.where(inside[None, :], x, float("-inf"))
    new_top = tl.maximum(top, tl.max(x, axis=1) * SCALE)
    keep = tl.exp2(top - new_top)
    weights = tl.exp2(x * SCALE - new_top[:, None])
    total = total * keep + tl.sum(weights, axis=1)
    mixed = mixed * keep[:, None]
    values = _read(v, at, inside, MASKED, DOT)
    mixed = tl.dot(weights.to(DOT), values, mixed, input_precision="ieee", out_dtype=COMPUTE)
    return mixed, new_top, total


@triton.jit
def _attention_forward_kernel(
    qkv, out, lse, P, N, first, H, T,
    WIDTH: tl.constexpr, SCALE: tl.constexpr, ONE_TILE: tl.constexpr,
    COMPUTE: tl.constexpr, DOT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """A tile of queries past all keys of its head."""
    tile, b, h = _sequence(tl.program_id(0), T, H)
    stride = 3 * H * WIDTH
    qkv += b * N * stride + h * WIDTH
    m = tile * BM + tl.arange(0, BM)
    Q = N - first
    q = _read(_rows(qkv + first * stride, m, stride, WIDTH), 0, m < Q, True, DOT)
    n = tl.arange(0, BN)
    k = _rows(qkv + H * WIDTH, n, stride, WIDTH)
    v = _rows(qkv + 2 * H * WIDTH, n, stride, WIDTH)
    if ONE_TILE:
        x = _product(q, tl.trans(_read(k, 0, n < N, True, DOT)), COMPUTE)
        x = tl.where((n < N)[None, :], x, float("-inf"))
        top = tl.max(x, axis=1) * SCALE
        weights = tl.exp2(x * SCALE - top[:, None])
        total = tl.sum(weights, axis=1)
        mixed = _product(weights.to(DOT), _read(v, 0, n < N, True, DOT), COMPUTE)
    else:
        top = tl.full((BM,), float("-inf"), COMPUTE)
        total = tl.zeros((BM,), COMPUTE)
        mixed = tl.zeros((BM, WIDTH), COMPUTE)
        whole = N // BN * BN
        for start in range(0, whole, BN):
            mixed, top, total = _forward_step(
                q, k, v, start, N, stride, mixed, top, total,
                False, SCALE, COMPUTE, DOT, BN,
            )  # fmt: skip
        if whole < N:
            mixed, top, total = _forward_step(
                q, k, v, whole, N, stride, mixed, top, total,
                True, SCALE, COMPUTE, DOT, BN,
            )  # fmt: skip
    # Behind Q what rows of zeros give: nothing is left unwritten.
    tl.store(lse + (b * H + h) * P + m, top + tl.log2(total), mask=m < P)
    place = _rows(out + (b * Q * H + h) * WIDTH, m, H * WIDTH, WIDTH)
    tl.store(place, mixed / total[:, None], mask=(m < Q)[:, None])


@triton.jit
def _queries_step(
    q, k, v, grad, lse, delta, start, N, stride, dq,
    MASKED: tl.constexpr, SCALE: tl.constexpr,
    COMPUTE: tl.constexpr, DOT: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Add what a tile of keys gives to the gradient of the queries."""
    inside = start + tl.arange(0, BN) < N
    at = start * stride
    keys = _read(k, at, inside, MASKED, DOT)
    values = _read(v, at, inside, MASKED, DOT)
    x = _product(q, tl.trans(keys), COMPUTE) * SCALE - lse[:, None]
    if MASKED:
        x = tl.where(inside[None, :], x, float("-inf"))
    dx = tl.exp2(x) * (_product(grad, tl.trans(values), COMPUTE) - delta[:, None])
    return tl.dot(dx.to(DOT), keys, dq, input_precision="ieee", out_dtype=COMPUTE)


@triton.jit
def _attention_queries_kernel(
    qkv, out, grad_out, lse, delta, P, grad, sums, N, first, H, T,
    WIDTH: tl.constexpr, SCALE: tl.constexpr, HAS_SUMS: tl.constexpr,
    COMPUTE: tl.constexpr, DOT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of queries, zero before `first`, and the rows' delta = out.grad."""
    tile, b, h = _sequence(tl.program_id(0), T, H)
    stride = 3 * H * WIDTH
    qkv += b * N * stride + h * WIDTH
    m = tile * BM + tl.arange(0, BM)
    wanted = (m >= first) & (m < N)
    q = _read(_rows(qkv, m, stride, WIDTH), 0, wanted, True, DOT)
    Q = N - first
    head = (b * Q * H + h) * WIDTH
    mixed = _read(_rows(out + head, m - first, H * WIDTH, WIDTH), 0, wanted, True, COMPUTE)
    g = _read(_rows(grad_out + head, m - first, H * WIDTH, WIDTH), 0, wanted, True, DOT)
    row_delta = tl.sum(mixed * g.to(COMPUTE), axis=1)
    place = (b * H + h) * P + m - first
    tl.store(delta + place, row_delta, mask=wanted)
    # The weights of a row that is not wanted are 2^-inf.
    row_lse = tl.load(lse + place, mask=wanted, other=float("inf"))
    n = tl.arange(0, BN)
    k = _rows(qkv + H * WIDTH, n, stride, WIDTH)
    v = _rows(qkv + 2 * H * WIDTH, n, stride, WIDTH)
    dq = tl.zeros((BM, WIDTH), COMPUTE)
    if tile * BM + BM > first:
        whole = N // BN * BN
        for start in range(0, whole, BN):
            dq = _queries_step(
                q, k, v, g, row_lse, row_delta, start, N, stride, dq,
                False, SCALE, COMPUTE, DOT, BN,
            )  # fmt: skip
        if whole < N:
            dq = _queries_step(
                q, k, v, g, row_lse, row_delta, whole, N, stride, dq,
                True, SCALE, COMPUTE, DOT, BN,
            )  # fmt: skip
    dq *= SCALE * 0.6931471805599453
    _write(grad, sums, dq, m, N, tile, b, h, H, T, 0, WIDTH, HAS_SUMS)


@triton.jit
def _write(
    grad, sums, x, n, N, tile, b, h, H, T,
    PART: tl.constexpr, WIDTH: tl.constexpr, HAS_SUMS: tl.constexpr,
):  # fmt: skip
    """Store rows of one of the three gradients, and their sum over the tile."""
    start = grad + ((b * N * 3 + PART) * H + h) * WIDTH
    tl.store(_rows(start, n, 3 * H * WIDTH, WIDTH), x, mask=(n < N)[:, None])
    if HAS_SUMS:
        place = sums + (((b * T + tile) * 3 + PART) * H + h) * WIDTH + tl.arange(0, WIDTH)
        tl.store(place, tl.sum(tl.where((n < N)[:, None], x, 0.0), axis=0))


@triton.jit
def _keys_step(
    keys, values, q, grad, lse, delta, start, Q, stride, stride_out, dk, dv,
    MASKED: tl.constexpr, SCALE: tl.constexpr,
    COMPUTE: tl.constexpr, DOT: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Add what a tile of queries gives to the gradients of keys and values; keys are the rows."""
    m = start + tl.arange(0, BM)
    inside = m < Q
    queries = _read(q, start * stride, inside, MASKED, DOT)
    g = _read(grad, start * stride_out, inside, MASKED, DOT)
    if MASKED:
        row_lse = tl.load(lse + m, mask=inside, other=float("inf"))
        row_delta = tl.load(delta + m, mask=inside, other=0.0)
    else:
        row_lse = tl.load(lse + m)
        row_delta = tl.load(delta + m)
    x = _product(keys, tl.trans(queries), COMPUTE) * SCALE - row_lse[None, :]
    weights = tl.exp2(x)
    dv = tl.dot(weights.to(DOT), g, dv, input_precision="ieee", out_dtype=COMPUTE)
    dx = weights * (_product(values, tl.trans(g), COMPUTE) - row_delta[None, :])
    dk = tl.dot(dx.to(DOT), queries, dk, input_precision="ieee", out_dtype=COMPUTE)
    return dk, dv


@triton.jit
def _attention_keys_kernel(
    qkv, grad_out, lse, delta, P, grad, sums, N, first, H, T,
    WIDTH: tl.constexpr, SCALE: tl.constexpr, HAS_SUMS: tl.constexpr,
    COMPUTE: tl.constexpr, DOT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of keys and values."""
    tile, b, h = _sequence(tl.program_id(0), T, H)
    stride = 3 * H * WIDTH
    qkv += b * N * stride + h * WIDTH
    n = tile * BN + tl.arange(0, BN)
    # Of keys behind the last one nothing is stored.
    keys = _read(_rows(qkv + H * WIDTH, n, stride, WIDTH), 0, n < N, True, DOT)
    values = _read(_rows(qkv + 2 * H * WIDTH, n, stride, WIDTH), 0, n < N, True, DOT)
    Q = N - first
    m = tl.arange(0, BM)
    q = _rows(qkv + first * stride, m, stride, WIDTH)
    g = _rows(grad_out + (b * Q * H + h) * WIDTH, m, H * WIDTH, WIDTH)
    lse += (b * H + h) * P
    delta += (b * H + h) * P
    dk = tl.zeros((BN, WIDTH), COMPUTE)
    dv = tl.zeros((BN, WIDTH), COMPUTE)
    whole = Q // BM * BM
    for start in range(0, whole, BM):
        dk, dv = _keys_step(
            keys, values, q, g, lse, delta, start, Q, stride, H * WIDTH, dk, dv,
            False, SCALE, COMPUTE, DOT, BM,
        )  # fmt: skip
    if whole < Q:
        dk, dv = _keys_step(
            keys, values, q, g, lse, delta, whole, Q, stride, H * WIDTH, dk, dv,
            True, SCALE, COMPUTE, DOT, BM,
        )  # fmt: skip
    dk *= SCALE * 0.6931471805599453
    _write(grad, sums, dk, n, N, tile, b, h, H, T, 1, WIDTH, HAS_SUMS)
    _write(grad, sums, dv, n, N, tile, b, h, H, T, 2, WIDTH, HAS_SUMS)


@triton.jit
def _attention_whole_kernel(
    qkv, grad_out, lse, P, grad, sums, N, first, H,
    WIDTH: tl.constexpr, SCALE: tl.constexpr, HAS_SUMS: tl.constexpr,
    COMPUTE: tl.constexpr, DOT: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """All three gradients of a sequence that is one tile; keys are the rows of the scores."""
    _, b, h = _sequence(tl.program_id(0), 1, H)
    stride = 3 * H * WIDTH
    qkv += b * N * stride + h * WIDTH
    n = tl.arange(0, BN)
    wanted = (n >= first) & (n < N)
    queries = _read(_rows(qkv, n, stride, WIDTH), 0, wanted, True, DOT)
    keys = _read(_rows(qkv + H * WIDTH, n, stride, WIDTH), 0, n < N, True, DOT)
    values = _read(_rows(qkv + 2 * H * WIDTH, n, stride, WIDTH), 0, n < N, True, DOT)
    Q = N - first
    head = (b * Q * H + h) * WIDTH
    g = _read(_rows(grad_out + head, n - first, H * WIDTH, WIDTH), 0, wanted, True, DOT)
    place = lse + (b * H + h) * P + n - first
    row_lse = tl.load(place, mask=wanted, other=float("inf"))
    x = _product(keys, tl.trans(queries), COMPUTE) * SCALE - row_lse[None, :]
    weights = tl.exp2(tl.where((n < N)[:, None], x, float("-inf")))
    dv = _product(weights.to(DOT), g, COMPUTE)
    _write(grad, sums, dv, n, N, 0, b, h, H, 1, 2, WIDTH, HAS_SUMS)
    dx = weights * _product(values, tl.trans(g), COMPUTE)
    # All keys are here, so the mean of the gradients needs no output that was rounded.
    dx -= weights * tl.sum(dx, axis=0)[None, :]
    dx = (dx * (SCALE * 0.6931471805599453)).to(DOT)
    _write(grad, sums, _product(dx, queries, COMPUTE), n, N, 0, b, h, H, 1, 1, WIDTH, HAS_SUMS)
    dq = _product(tl.trans(dx), keys, COMPUTE)
    _write(grad, sums, dq, n, N, 0, b, h, H, 1, 0, WIDTH, HAS_SUMS)
