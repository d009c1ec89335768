# SPDX-License-Identifier: Apache-2.0
"""What a softmax over wide rows needs to know of each row before it reads it again."""

from sjepa_kernels._triton import tl, triton


@triton.jit
def row_stats_kernel(
    x, center, temp, stats, R, D,
    HAS_CENTER: tl.constexpr, COMPUTE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """A row each: maximum of the scaled row and the sum of exponentials below it, online."""
    r = tl.program_id(0).to(tl.int64)
    scale = 1.0 / tl.load(temp)
    top = tl.full((), float("-inf"), COMPUTE)
    total = tl.full((), 0.0, COMPUTE)
    for start in range(0, D, BD):
        d = start + tl.arange(0, BD)
        in_d = d < D
        v = tl.load(x + r * D + d, mask=in_d, other=0.0).to(COMPUTE)
        if HAS_CENTER:
            v -= tl.load(center + d, mask=in_d, other=0.0).to(COMPUTE)
        v = tl.where(in_d, v * scale, float("-inf"))
        new = tl.maximum(top, tl.max(v, axis=0))
        total = total * tl.exp(top - new) + tl.sum(tl.exp(v - new), axis=0)
        top = new
    tl.store(stats + r, top)
    tl.store(stats + R + r, total)
