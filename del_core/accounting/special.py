"""Special functions for accounting, so that clients need no scipy (140 MB)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

_FRACTION_FROM = 2.5
_FRACTION_TERMS = 80  # enough for a float's precision from there on


def ndtr(x: float) -> float:
    """Return Phi(x), the standard normal distribution function."""
    return 0.5 * math.erfc(-x * math.sqrt(0.5))


def log_ndtr(x: float) -> float:
    """Return log Phi(x), accurate also where Phi(x) is below the smallest float."""
    if x > 0.0:
        return math.log1p(-ndtr(-x))
    return math.log(0.5 * erfcx(-x * math.sqrt(0.5))) - 0.5 * x * x


def erfcx(x: float) -> float:
    """Return exp(x^2) erfc(x) for x >= 0.

    Small x use the definition, large x Laplace's continued fraction erfc(x) exp(x^2) sqrt(pi) =
    1/(x + (1/2)/(x + (2/2)/(x + (3/2)/(x + ...)))), a sum of positive terms.
    """
    if x < _FRACTION_FROM:
        return math.exp(x * x) * math.erfc(x)
    tail = x
    for k in range(_FRACTION_TERMS, 0, -1):
        tail = x + 0.5 * k / tail
    return 1.0 / (math.sqrt(math.pi) * tail)


def expit(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return 1 / (1 + exp(-x)), any shape, without overflow and with all digits at both ends."""
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0.0, 1.0, small) / (1.0 + small), np.float64)


def find_root(function: Callable[[float], float], low: float, high: float, *, xtol: float, rtol: float) -> float:
    """Return a zero of ``function`` in [low, high], at whose ends the signs must differ.

    Chandrupatla's method (Adv. Eng. Software 28, 1997): inverse quadratic interpolation if the last
    three points show convergence, else bisection, until the bracket is below ``xtol + rtol |x|``.
    """
    a, b = high, low
    fa, fb = function(a), function(b)
    if fa * fb > 0.0:
        raise ValueError("function must have different signs at low and high, got the same")
    c, fc, share = a, fa, 0.5
    while True:
        best, value = (a, fa) if abs(fa) < abs(fb) else (b, fb)
        room = 0.5 * (xtol + rtol * abs(best))
        if value == 0.0 or abs(b - a) <= 2.0 * room:
            return best
        least = room / abs(b - a)
        middle = a + min(1.0 - least, max(least, share)) * (b - a)
        if middle in (a, b):  # neighbouring floats
            return best
        f_middle = function(middle)
        if (f_middle > 0.0) == (fa > 0.0):
            c, fc = a, fa
        else:
            c, fc, b, fb = b, fb, a, fa
        a, fa = middle, f_middle
        share = 0.5
        if fa in (fb, fc) or fb == fc:
            continue
        xi, phi = (a - b) / (c - b), (fa - fb) / (fc - fb)
        if phi * phi < xi and (1.0 - phi) ** 2 < 1.0 - xi:
            share = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
