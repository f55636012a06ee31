"""Certified bounds of delta and epsilon: losses of a product of binomials on an even lattice.

With K the cumulant of the loss L under P, P_s the law with density exp(s L - K(s)) with respect to
P, and any s > 0,

    delta(epsilon) = exp(K(s) - s epsilon) E_s[ exp(-s (L - epsilon)) (1 - exp(epsilon - L))+ ],

so that all sums are of order 1 whatever the size of delta. P_s is a product of binomials again.

The upper bound ("connect the dots", Doroshenko et al., arXiv 2207.04380) splits outcomes between
lattice points, the lower one rounds losses to them; proofs: ``docs/privacy/vocabulary.md``. Sums
over coordinates are convolved by FFT, whose error is bounded, with the mass outside the window, and
added on the safe side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from del_core.accounting.special import expit, find_root
from del_core.mechanism.base import PROBABILITY_ONE

FloatArray = npt.NDArray[np.float64]
Group = tuple[int, int, int]
"""N, p 2^32, q 2^32 of coordinates that are alike."""

_TAIL = 1e-17
"""Tilted mass that may lie outside the window, and outside the atoms of a binomial."""

_FFT_ERROR = 8 * 2.0**-53
"""Relative error of an FFT in the Euclidean norm per doubling of its length, correctly rounded
twiddle factors (Higham, Accuracy and Stability of Numerical Algorithms, theorem 24.2).
"""

_LARGEST_GROWTH = 8.0  # of total tilt step, see below
_BATCH = 1 << 20  # lattice points transformed at once


class Cumulant:
    """K(s) = log E_P[exp(s L)] of a product of binomials, without cancellation for s >= 0.

    For one Bernoulli(p) against Bernoulli(q) with losses l1 at success and l0 at failure,

        E_P[exp(s L)] - 1 = s KL(P||Q) + p g(s l1) + (1-p) g(s l0),      g(x) = exp(x) - 1 - x >= 0,
        KL(P||Q) = p h(-t/p) + (1-p) h(t/(1-p)),  t = p - q,             h(x) = x - log(1+x) >= 0:

    positive terms only, so that K keeps its digits when p and q almost agree.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        numbers = np.array(groups, dtype=np.int64).reshape(-1, 3)
        self.trials = numbers[:, 0].astype(np.float64)
        self.p = numbers[:, 1] / PROBABILITY_ONE
        self.p_failure = (PROBABILITY_ONE - numbers[:, 1]) / PROBABILITY_ONE
        gap = (numbers[:, 1] - numbers[:, 2]) / PROBABILITY_ONE
        fall, rise = gap / self.p, gap / self.p_failure
        # 1 - fall = q/p would lose digits where p and q differ much.
        self.success_loss = np.where(fall < 0.5, -np.log1p(-fall), np.log(numbers[:, 1] / numbers[:, 2]))
        self.failure_loss = -np.log1p(rise)
        at_success = np.where(fall < 0.1, _minus_log1p(-fall), self.success_loss - fall)
        self._divergence = self.p * at_success + self.p_failure * _minus_log1p(rise)

    def __call__(self, tilt: npt.ArrayLike) -> FloatArray:
        """Return K at ``tilt``, any shape. Memory: size of ``tilt`` times number of groups."""
        s = np.asarray(tilt, np.float64)[..., None]
        a, b = s * self.success_loss, s * self.failure_loss
        large = np.logaddexp(np.log(self.p) + a, np.log(self.p_failure) + b)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # where it happens, `large` is taken
            small = np.log1p(s * self._divergence + self.p * _minus_expm1(a) + self.p_failure * _minus_expm1(b))
        value = np.where(np.maximum(np.abs(a), np.abs(b)) > 1.0, large, small)
        return np.asarray(value @ self.trials, np.float64)


def _minus_log1p(x: FloatArray) -> FloatArray:
    """Return x - log(1 + x), with digits lost for x near -1."""
    small = np.abs(x) <= 0.1
    y, series = np.where(small, x, 0.0), np.zeros_like(x)
    for j in range(17, 1, -1):
        series = 1.0 / j - y * series
    return np.where(small, y * y * series, x - np.log1p(x))


def _minus_expm1(x: FloatArray) -> FloatArray:
    """Return exp(x) - 1 - x."""
    small = np.abs(x) <= 0.5
    y, series = np.where(small, x, 0.0), np.zeros_like(x)
    for j in range(14, 2, -1):
        series = (series + 1.0) * y / j
    return np.where(small, 0.5 * y * y * (series + 1.0), np.expm1(x) - x)


class LossLattice:
    """Losses of a pair on ``points`` (a power of two) lattice points around the relevant range.

    ``groups`` are at least two of ``ProductPair``. Any positive ``tilt`` (s above) gives valid
    bounds; the order minus one that is best in the Renyi conversion gives tight ones.
    """

    def __init__(self, groups: Sequence[Group], tilt: float, points: int) -> None:
        self._groups, self._points = tuple(groups), points
        self._total_cumulant = Cumulant(groups)
        self._success_loss, self._failure_loss = self._total_cumulant.success_loss, self._total_cumulant.failure_loss
        total = len(self._groups)
        if points < 8 * (total + 2):
            raise ValueError(f"points must be at least {8 * (total + 2)} for {total} groups, got {points}")
        # Splitting and rounding change the tilted mass of an outcome by up to exp(s h) a group.
        # Near the largest loss the best order grows without limit; a smaller tilt serves as well
        # there and keeps this factor in bounds.
        while True:
            outside = self._place(tilt)
            if total * tilt * self._step <= _LARGEST_GROWTH:
                break
            tilt *= 0.5
        growth = math.exp(total * tilt * self._step)
        self._outside = (outside + 2 * total * _TAIL) * growth
        self._noise = (total + 2) * _FFT_ERROR * math.log2(points) * growth
        self._losses = (self._first + np.arange(points)) * self._step

    def _place(self, tilt: float) -> float:
        """Choose window and step for a tilt; return a bound of the mass outside the window."""
        total, n = len(self._groups), self._total_cumulant.trials
        slope = self._success_loss - self._failure_loss
        # Bernoulli(p) tilted by s: odds p / (1-p) exp(s (l1 - l0)).
        self._log_odds = np.log(self._total_cumulant.p / self._total_cumulant.p_failure) + tilt * slope
        self._tilt, self._tilted = tilt, expit(self._log_odds)
        self._cumulant = float(self._total_cumulant(tilt))
        mean = float(np.sum(n * (self._tilted * slope + self._failure_loss)))
        self._deviation = math.sqrt(float(np.sum(n * slope**2 * self._tilted * expit(-self._log_odds))))
        smallest, largest = float(np.sum(n * self._failure_loss)), float(np.sum(n * self._success_loss))
        half, outside = self._half_width(mean, self._deviation, smallest, largest)
        low, high = max(mean - half, smallest), min(mean + half, largest)
        # Rounding moves a sum of losses by less than one step a group: room is kept at both ends.
        self._step = (high - low) / (self._points - 2 * (total + 2))
        self._first = math.floor(low / self._step) - total - 1
        return outside

    def delta_upper(self, epsilon: float) -> float:
        """Return an upper bound of delta(epsilon)."""
        return self._bracket_value(self._upper_law, self._upper_law, epsilon, 1.0)

    def delta_lower(self, epsilon: float) -> float:
        """Return a lower bound of delta(epsilon), possibly negative."""
        return self._bracket_value(*self._lower_laws, epsilon, -2.0)

    def epsilon(self, delta: float, ceiling: float, *, upper: bool) -> float:
        """Return an upper or a lower bound of epsilon(delta), given the upper bound ``ceiling``."""
        low, high = self._inverse(self.delta_upper if upper else self.delta_lower, delta, ceiling)
        return high if upper else low

    def _inverse(self, function: Callable[[float], float], delta: float, ceiling: float) -> tuple[float, float]:
        """Return low and high, close together, with function(low) > delta >= function(high).

        An end of [0, ceiling], a valid bound, need not meet the condition.
        """
        high, step = ceiling, 0.1 * self._deviation + 2.0 * self._step
        if function(ceiling) > delta:
            return ceiling, ceiling
        low = max(0.0, high - step)
        while function(low) <= delta:
            if low == 0.0:
                return 0.0, 0.0
            high, step = low, 2.0 * step
            low = max(0.0, high - step)
        # The slope of log delta is nearly constant. The invariant is checked after the root finder.
        target = math.log(delta)
        room = 1e-14 * ceiling

        def excess(epsilon: float) -> float:
            value = function(epsilon)
            return math.log(value) - target if value > 0.0 else -745.0 - target

        root = find_root(excess, low, high, xtol=max(room, 1e-300), rtol=1e-14)
        for _ in range(60):
            left, right = max(low, root - room), min(high, root + room)
            if (left == low or function(left) > delta) and (right == high or function(right) <= delta):
                return left, right
            room *= 2.0
        return low, high

    def _bracket_value(self, mass: FloatArray, null_mass: FloatArray, epsilon: float, margin: float) -> float:
        """Return exp(K-se) {sum_{x>=e} exp(-s(x-e)) [mass - exp(e-x) null mass] + margin}."""
        s = self._tilt
        index = int(np.searchsorted(self._losses, epsilon, side="left"))
        above = self._losses[index:] - epsilon
        weights = np.exp(-s * above)
        value = float(weights @ (mass[index:] - np.exp(-above) * null_mass[index:]))
        # Euclidean norm of exp(-s (x - e)) over the lattice, for the errors of the FFT.
        norm = math.sqrt(min(self._points, 1.0 + 1.0 / -math.expm1(-2.0 * s * self._step)))
        log_scale = self._cumulant - s * epsilon
        return math.exp(min(700.0, log_scale)) * (value + margin * (self._outside + self._noise * norm))

    @cached_property
    def _upper_law(self) -> FloatArray:
        return np.maximum(self._convolved([self._split(i) for i in range(len(self._groups))]), 0.0)

    @cached_property
    def _lower_laws(self) -> tuple[FloatArray, FloatArray]:
        rounded = [self._rounded(i) for i in range(len(self._groups))]
        mass = self._convolved([(index, weight) for index, weight, _ in rounded])
        return mass, self._convolved([(index, weight) for index, _, weight in rounded])

    def _split(self, group: int) -> tuple[npt.NDArray[np.int64], FloatArray]:
        losses, mass = self._atoms(group)
        cell = np.floor(losses / self._step)
        above = np.clip(losses - cell * self._step, 0.0, self._step)
        share = np.expm1(-above) / math.expm1(-self._step)
        s = self._tilt
        left = mass * (1.0 - share) * np.exp(-s * above)
        right = mass * share * np.exp(s * (self._step - above))
        index = cell.astype(np.int64)
        return np.concatenate((index, index + 1)), np.concatenate((left, right))

    def _rounded(self, group: int) -> tuple[npt.NDArray[np.int64], FloatArray, FloatArray]:
        losses, mass = self._atoms(group)
        cell = np.rint(losses / self._step)
        moved = cell * self._step - losses
        return cell.astype(np.int64), mass * np.exp(self._tilt * moved), mass * np.exp((self._tilt + 1.0) * moved)

    def _atoms(self, group: int) -> tuple[FloatArray, FloatArray]:
        """Return losses of one group and their tilted masses, up to a mass of 2e-17 (Hoeffding)."""
        trials, p = self._groups[group][0], float(self._tilted[group])
        mode = min(trials, int((trials + 1) * p))
        reach = math.ceil(math.sqrt(0.5 * trials * math.log(2.0 / _TAIL))) + 1
        low, high = max(0, mode - reach - 1), min(trials, mode + reach + 1)
        k = np.arange(low, high + 1, dtype=np.float64)
        odds = math.exp(min(700.0, max(-700.0, float(self._log_odds[group]))))
        up = np.cumprod((trials - k[mode - low : -1]) / (k[mode - low : -1] + 1.0) * odds)
        down = np.cumprod((k[1 : mode - low + 1] / (trials - k[1 : mode - low + 1] + 1.0) / odds)[::-1])[::-1]
        mass = np.concatenate((down, [1.0], up))
        losses = k * self._success_loss[group] + (trials - k) * self._failure_loss[group]
        return losses, mass / float(np.sum(mass))

    def _convolved(self, atoms: Sequence[tuple[npt.NDArray[np.int64], FloatArray]]) -> FloatArray:
        """Return the law of the sum of independent lattice variables, circular on the window."""
        points, product = self._points, np.ones(self._points // 2 + 1, np.complex128)
        rows = max(1, _BATCH // points)
        shift = self._first
        for start in range(0, len(atoms), rows):
            batch = atoms[start : start + rows]
            dense = np.zeros((len(batch), points))
            for row, (index, mass) in zip(dense, batch, strict=True):
                np.add.at(row, (index - shift) % points, mass)
                shift = 0  # the window's origin is taken off once
            product *= np.prod(np.fft.rfft(dense, axis=1), axis=0)
        return np.asarray(np.fft.irfft(product, points), np.float64)

    def _half_width(self, mean: float, deviation: float, smallest: float, largest: float) -> tuple[float, float]:
        """Return the half width of a window around ``mean`` and a bound of the mass outside."""
        # At least this share of the range: near the largest loss the law is a few atoms, no bell.
        half = max(8.7 * deviation, 1e-3 * (largest - smallest))
        while True:
            bounds = [0.0, 0.0]
            if mean + half < largest:
                bounds[0] = self._chernoff(mean, half, deviation, 1.0)
            if mean - half > smallest:
                bounds[1] = self._chernoff(mean, half, deviation, -1.0)
            if max(bounds) <= _TAIL:
                return half, sum(bounds)
            half *= 1.1

    def _chernoff(self, mean: float, half: float, deviation: float, sign: float) -> float:
        """Return a bound of the mass beyond x = mean + sign half: exp(K(s+t) - K(s) - t x)."""
        # The best t of a bell is half / deviation^2; a law much narrower needs less.
        t = sign * min((half / max(deviation, 1e-3 * half)) ** 2, 1000.0) / half * np.array([1.0, 0.7, 0.4])
        exponents = self._total_cumulant(self._tilt + t) - self._cumulant - t * (mean + sign * half)
        return math.exp(min(0.0, float(np.min(exponents))))
