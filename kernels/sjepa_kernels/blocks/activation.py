# SPDX-License-Identifier: Apache-2.0
"""The exact GELU, x Phi(x) with the normal distribution's Phi, for kernels."""

from sjepa_kernels._triton import tl, triton

# log2 of Phi(-a) for a >= 0 as a polynomial, the coefficients of least largest error on [0, 8] by
# weighted least squares: Phi(-a) within 3.4e-5 of itself, a fourteenth of what float16 rounds off.
# The last one is negative, so that beyond 8 the power goes to 0.
_TAIL = tl.constexpr(
    (
        -1.0000430345535278,
        -1.1506099700927734,
        -0.4599568545818329,
        -0.05263537913560867,
        0.007944578304886818,
        -0.0008072482305578887,
        4.8203295591520146e-05,
        -1.2624586815945804e-06,
    )
)


@triton.jit
def gelu_parts(x, SHORT: tl.constexpr):
    """Return gelu(x) and its slope.

    The short form is for results that are rounded to half precision: one power and a polynomial,
    where a division and two powers took 1.7 times the instructions (benchmarks/LOG.md). A kernel
    that also multiplies matrices has no time for those.
    """
    density = tl.exp2(-0.7213475204444817 * x * x) * 0.3989422804014327
    if SHORT:
        a = tl.abs(x)
        power = tl.full(x.shape, _TAIL[7], x.dtype)
        for k in tl.static_range(7):
            power = power * a + _TAIL[6 - k]
        tail = tl.exp2(power)
        cdf = tl.where(x < 0, tail, 1.0 - tail)
        activation = tl.maximum(x, 0.0) - a * tail
    else:
        cdf = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
        activation = x * cdf
    return activation, cdf + x * density
