"""Powers of two, shared between the special-function units and the multiply-add units of a GPU.

A head of 32 has 128 multiply-adds on the tensor cores for each exponential, and a Hopper or
Blackwell SM makes 16 exponentials a clock beside 128 multiply-adds of plain float32. What the
special-function units have no time for, a polynomial makes.
"""

from sjepa_kernels._triton import tl, triton

# 2^f = 1 + f (C1 + f (C2 + f C3)) on [-1/2, 1/2], the coefficients that make the largest relative
# error least (by Remez's exchange) under the value 1 at f = 0. In float32 it is below 1.02e-4, a
# twentieth of what bfloat16 rounds off.
_C1 = tl.constexpr(0.6932829022407532)
_C2 = tl.constexpr(0.2422109693288803)
_C3 = tl.constexpr(0.05500893294811249)
POLYNOMIAL_ERROR = 1.02e-4

# 1.5 * 2^23: a float32 as large as this has no bits behind the point.
_SHIFT = tl.constexpr(12582912.0)


@triton.jit
def polynomial_exp2(x):
    """2^x of float32 numbers up to 127, without a special function; 0 below -127.

    x = n + f with a whole n nearest to x. The polynomial of f lies in [0.7, 1.42], and n is added
    to its exponent; at n = -127 it is 1 or more, so that the exponent never falls below 0.
    """
    x = tl.maximum(x, -127.0)
    shifted = x + _SHIFT
    f = x - (shifted - _SHIFT)
    power = 1.0 + f * (_C1 + f * (_C2 + f * _C3))
    # The low bits of `shifted` are n; what stands above them is shifted out.
    bits = power.to(tl.int32, bitcast=True) + (shifted.to(tl.int32, bitcast=True) << 23)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _halves(x):
    """Every other group of 8 columns, and the rest.

    A tensor core's result has these two in different registers of the same threads, on all
    generations, so that no number moves.
    """
    parts = tl.reshape(x, (x.shape[0], x.shape[1] // 16, 2, 8))
    even, odd = tl.split(tl.permute(parts, (0, 1, 3, 2)))
    half: tl.constexpr = x.shape[1] // 2
    return tl.reshape(even, (x.shape[0], half)), tl.reshape(odd, (x.shape[0], half))


@triton.jit
def _joined(even, odd):
    """The tile whose `_halves` these are."""
    groups: tl.constexpr = even.shape[1] // 8
    shape: tl.constexpr = (even.shape[0], groups, 8)
    parts = tl.permute(tl.join(tl.reshape(even, shape), tl.reshape(odd, shape)), (0, 1, 3, 2))
    return tl.reshape(parts, (even.shape[0], 16 * groups))


@triton.jit
def exp2(x, SHARE: tl.constexpr):
    """2^x of a tile; the polynomial makes one column of SHARE (2, 4 or 8; 0: none of them)."""
    if SHARE == 0:
        power = tl.exp2(x)
    else:
        even, odd = _halves(x)
        if SHARE == 2:  # noqa: SIM108 (Triton must see one branch alone)
            odd = polynomial_exp2(odd)
        else:
            odd = exp2(odd, SHARE // 2)
        power = _joined(tl.exp2(even), odd)
    return power
