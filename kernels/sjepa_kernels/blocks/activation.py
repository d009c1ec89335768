"""The exact GELU, x Phi(x) with the normal distribution's Phi, for kernels."""

from sjepa_kernels._triton import tl, triton


@triton.jit
def gelu_parts(x, SHORT: tl.constexpr):
    """Return Phi(x) and x Phi'(x): gelu is x Phi(x), and its slope the sum of the two.

    The short form is Abramowitz and Stegun 26.2.17, within 7.5e-8 of Phi, for results that are
    rounded to half precision: it shares the exponential with the slope and has no branches.
    """
    density = tl.exp2(-0.7213475204444817 * x * x) * 0.3989422804014327
    if SHORT:
        t = 1.0 / (1.0 + 0.2316419 * tl.abs(x))
        tail = 1.330274429 * t - 1.821255978
        tail = tail * t + 1.781477937
        tail = tail * t - 0.356563782
        tail = tail * t + 0.319381530
        tail *= t * density
        cdf = tl.where(x < 0, tail, 1.0 - tail)
    else:
        cdf = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
    return cdf, x * density
