"""Elementary functions of one real or complex number that keep their digits and never raise.

Complex arguments exist for complex-step differentiation: the imaginary part is tiny and carries
the derivative, so comparisons look at the real part.
"""

import cmath
import math

Number = float | complex


def real(x: Number) -> float:
    """The real part, as a float."""
    return x.real if isinstance(x, complex) else float(x)


def exp(x: Number) -> Number:
    """e^x; infinite instead of an OverflowError."""
    if isinstance(x, complex):
        return cmath.exp(x)
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def log(x: Number) -> Number:
    """Natural logarithm; −inf at 0."""
    if isinstance(x, complex):
        return cmath.log(x)
    return -math.inf if x == 0 else math.log(x)


def log1p(x: Number) -> Number:
    """log(1 + x) without rounding 1 + x first; −inf at x = −1."""
    if isinstance(x, complex):
        # |1 + x|² = 1 + re (2 + re) + im²
        modulus = 0.5 * math.log1p(x.real * (2 + x.real) + x.imag * x.imag)
        return complex(modulus, math.atan2(x.imag, 1 + x.real))
    return -math.inf if x == -1 else math.log1p(x)


def expm1(x: Number) -> Number:
    """e^x − 1 without cancellation near 0."""
    if isinstance(x, complex):
        growth = math.expm1(x.real)
        turn = 2 * math.sin(x.imag / 2) ** 2
        return complex(growth - (1 + growth) * turn, (1 + growth) * math.sin(x.imag))
    try:
        return math.expm1(x)
    except OverflowError:
        return math.inf


def sigmoid(x: Number) -> Number:
    """1 / (1 + e^−x), with full relative accuracy on both sides."""
    if real(x) >= 0:
        return 1 / (1 + exp(-x))
    small = exp(x)
    return small / (1 + small)


def softplus(x: Number) -> Number:
    """log(1 + e^x) = −log sigmoid(−x), with full relative accuracy on both sides."""
    return x + log1p(exp(-x)) if real(x) > 0 else log1p(exp(x))
