"""Privacy accounting restricted to a given vocabulary.

The guarantee is the largest epsilon over all ordered pairs of rows. Branch and bound finds it: a
certified screen of all pairs (``screen``, and ``kernel`` if many remain), Renyi divergences of the
remaining pairs, and the privacy loss distribution (``product_pair``) of those that could be the
worst. The bound holds wherever the search stops. Proofs: ``docs/privacy/vocabulary.md``. A table
with 128 columns needs about 3 KiB for each token.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from del_core import accounting
from del_core._validation import check_array, check_integer, check_number
from del_core.accounting.composition import DEFAULT_ORDERS, Composition, RenyiCurve
from del_core.accounting.product_pair import ProductPair, renyi_constant, renyi_epsilon
from del_core.mechanism import Mechanism
from del_core.mechanism.base import DEFAULT_DELTA, Integers
from del_core.vocabulary_accounting.kernel import DivergenceKernel, KernelRows
from del_core.vocabulary_accounting.screen import FloatArray, IndexArray, PairDistances, Screen, pair_divergences

Progress = Callable[[float], None]
Sieve = Callable[[IndexArray, IndexArray], npt.NDArray[np.bool_]]

_FEW_TOKENS = 200  # up to here every pair is looked at
_COARSE, _FINE = 1 << 12, 1 << 16  # lattice points of a first and of a final evaluation
_CHUNK = 4096  # pairs whose Renyi divergences are computed at once
_TOLERANCE = 1e-6  # relative gap between upper and lower bound at which the search ends
KERNEL_PAIRS = 1 << 28  # up to here token_epsilons spends a few times as long on sharper bounds
_KERNEL_WORK = 1 << 41  # multiplications per order that vocabulary_curve spends on them: a minute or two
_EXPONENTS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class VocabularyBound:
    """Worst pair of a vocabulary: one private token replaced by any other.

    Attributes:
        epsilon: proven upper bound over all ordered pairs, at ``delta``; at most ``cube_epsilon``.
        epsilon_lower: an epsilon that ``pair`` needs, up to rounding; the exact one lies between.
        pair: token ids (v, w) that are easiest to tell apart.
        cube_epsilon: epsilon for arbitrary inputs, ``accounting.epsilon(mechanism, delta)``.
        method: certificate of ``epsilon``: ``"loss distribution"`` (of the worst pair), ``"renyi"``
            (the search ended at its limit), ``"cube"`` (a pair attains the cube's epsilon) or
            ``"single"`` (one distinct row).
        pairs, evaluations: numbers of divergences and of loss distributions computed.
    """

    epsilon: float
    epsilon_lower: float
    pair: tuple[int, int]
    cube_epsilon: float
    delta: float
    method: str
    pairs: int
    evaluations: int


@dataclass(frozen=True)
class TokenEpsilons:
    """Upper bounds of each token's epsilon at ``delta`` against other tokens.

    Attributes:
        worst: against any other token.
        worst_rival: the farthest token, against which ``worst`` is nearly attained.
        nearest: against ``nearest_rival``, the most similar token.
        typical: median of the bounds against the ``rivals`` nearest tokens.
    """

    tokens: IndexArray
    worst: FloatArray
    worst_rival: IndexArray
    nearest: FloatArray
    nearest_rival: IndexArray
    typical: FloatArray
    rivals: int
    delta: float


def vocabulary_epsilon(
    mechanism: Mechanism,
    table: Integers,
    delta: float,
    *,
    progress: Progress | None = None,
    evaluations: int = 4000,
    pairs: int = 1 << 21,
) -> VocabularyBound:
    """Return the worst epsilon at ``delta`` over all ordered pairs of tokens.

    Args:
        table: levels (V, dim), as the bundle ships them.
        progress: called with the finished share of the scan, 0 to 1.
        evaluations: most loss distributions to compute (10 to 60 ms each).
        pairs: most pairs to hold (32 bytes each). Both limits keep the bound valid.
    """
    _check(mechanism, table, delta)
    cube = accounting.epsilon(mechanism, delta)
    report = progress or (lambda share: None)
    if not _distinct(table):
        report(1.0)
        return VocabularyBound(0.0, 0.0, (0, 0), cube, delta, "single", 0, 0)
    guess = PairDistances(_plain_screen(mechanism), table).far_pair()
    search = _Search(mechanism, table, delta, cube, evaluations, pair=guess)
    for v, w in (guess, guess[::-1]):
        search.raise_lower(v, w, _COARSE)
    if search.lower >= cube * (1.0 - 1e-12):
        report(1.0)
        return search.result(cube, "cube", 1)
    orders = 1.0 + _pair(mechanism, table, *guess).best_excess(delta) * np.array([0.6, 0.8, 1.0, 1.25, 1.6, 2.5])
    if len(table) <= _FEW_TOKENS:  # every pair is a candidate, so no screen is needed
        candidates = np.stack(np.triu_indices(len(table), 1), axis=1)
        bounds, rest = np.full(len(candidates), cube), 0.0
    else:
        screen = Screen.fitted(mechanism, table, orders, _EXPONENTS, guess, delta, _nodes(table))
        threshold = screen.distance(search.lower, delta)
        sieve = _sieve(mechanism, table, float(orders[2]), search.lower, delta)
        candidates, distances, beyond = PairDistances(screen, table).beyond(threshold, pairs, report, sieve)
        bounds, rest = screen.epsilon(distances, delta), float(screen.epsilon(beyond, delta))
    epsilon, method = search.run(candidates, bounds, rest, orders)
    report(1.0)
    return search.result(epsilon, method, len(candidates))


def vocabulary_curve(
    mechanism: Mechanism,
    table: Integers,
    orders: tuple[float, ...] = DEFAULT_ORDERS,
    *,
    progress: Progress | None = None,
    pairs: int = 2048,
) -> RenyiCurve:
    """Return upper bounds of the Renyi divergences of all token pairs, for composition.

    ``vocabulary_curve(...) * T`` bounds the replacement of T tokens, and curves of variants add.
    The farthest ``pairs`` are evaluated exactly; screen and cube bound the rest. At a dozen orders
    around the best one the kernel improves the bound if it is affordable, and the orders between
    follow by convexity.
    """
    _check(mechanism, table, 0.5)
    order_array = np.asarray(orders, np.float64)
    cube = np.asarray(Composition.of(mechanism).renyi(orders).divergences)
    if not _distinct(table):
        return RenyiCurve.nothing(orders)
    screen = Screen.fitted(mechanism, table, order_array, nodes=513)
    distances = PairDistances(screen, table)
    v, w = distances.far_pair()
    features = screen.features(table[[v, w]])
    threshold = 0.93 * float(np.linalg.norm(features[0] - features[1]))
    candidates, _, rest = distances.beyond(threshold, pairs, progress)
    exact_bound = np.zeros_like(order_array)
    for first, second in ((0, 1), (1, 0)):
        for start in range(0, len(candidates), _CHUNK):
            here = candidates[start : start + _CHUNK]
            exact = pair_divergences(mechanism, table[here[:, first]], table[here[:, second]], order_array)
            exact_bound = np.maximum(exact_bound, exact.max(axis=0))
    bound = np.minimum(np.maximum(screen.divergences(rest), exact_bound), cube)
    excess = _pair(mechanism, table, v, w).best_excess(DEFAULT_DELTA) * np.geomspace(1 / 200, 3.0, 12)
    nodes = np.unique(np.argmin(np.abs(np.log((order_array[:, None] - 1.0) / excess)), axis=0))
    for node in nodes.tolist():
        one = Screen(mechanism, screen.orders[[node]], screen.kappa[[node]], screen.exponent, screen.slack)
        bound[node] = min(bound[node], _largest_divergence(table, one, distances, float(exact_bound[node])))
    return RenyiCurve(orders, tuple(_convex(order_array, bound).tolist()))


def _largest_divergence(table: Integers, screen: Screen, distances: PairDistances, attained: float) -> float:
    """Return the kernel's bound of all pairs at the one order of ``screen``; inf if too costly."""
    mechanism, size = screen.mechanism, 1024
    starts = np.arange(0, len(table), size)
    outer = distances.radii[starts]
    near = screen.divergences(outer[:, None] + outer[None, :])[..., 0] <= attained  # blocks that cannot exceed it
    open_blocks = np.argwhere(~near & (starts[:, None] >= starts[None, :]))
    kernel = DivergenceKernel.fitted(mechanism, table, float(screen.orders[0]), min(_nodes(table), 1025))
    if len(open_blocks) * size * size * table.shape[1] * kernel.left.shape[1] > _KERNEL_WORK:
        return math.inf
    rows = kernel.rows(
        table[distances.order[: int(starts[open_blocks.max()]) + size]] if len(open_blocks) else table[:1]
    )
    largest = attained
    for i, k in open_blocks.tolist():
        block = np.arange(starts[i], min(starts[i] + size, len(table)))
        largest = max(largest, float(rows.mutual(block, slice(int(starts[k]), int(starts[k]) + size)).max()))
    return largest


def _convex(orders: FloatArray, bounds: FloatArray) -> FloatArray:
    """Sharpen upper bounds of D_a by the lower convex hull of those of (a-1) D_a.

    For every pair that is convex in a and 0 at a = 1, hence also for the largest.
    """
    rank = np.argsort(orders)
    x, y = np.concatenate(([0.0], orders[rank] - 1.0)), np.concatenate(([0.0], (orders[rank] - 1.0) * bounds[rank]))
    hull: list[int] = []
    for i in range(len(x)):
        while len(hull) > 1 and (y[hull[-1]] - y[hull[-2]]) * (x[i] - x[hull[-1]]) >= (y[i] - y[hull[-1]]) * (
            x[hull[-1]] - x[hull[-2]]
        ):
            hull.pop()
        hull.append(i)
    result = np.empty_like(bounds)
    result[rank] = np.interp(x[1:], x[hull], y[hull]) / (orders[rank] - 1.0)
    return np.minimum(bounds, result * (1.0 + 1e-12))


def token_epsilons(
    mechanism: Mechanism,
    table: Integers,
    delta: float,
    tokens: Integers | None = None,
    *,
    rivals: int = 10,
    farthest: int = 16,
    progress: Progress | None = None,
) -> TokenEpsilons:
    """Return upper bounds of the worst and typical epsilon of every token of ``tokens`` (or all).

    The bounds come from Renyi divergences and are 3 to 9 % above the exact values. Both directions
    of a pair count. ``typical`` looks at the ``rivals`` nearest tokens; the ``farthest`` tokens are
    evaluated one by one, and a screen bounds the rest. Time: one product of ``tokens`` x V x dim, a
    few more up to :data:`KERNEL_PAIRS`, and 2 (rivals + farthest) pairs for each token.
    """
    _check(mechanism, table, delta)
    check_integer("rivals", rivals, 1)
    check_integer("farthest", farthest, 1)
    chosen = np.arange(len(table)) if tokens is None else np.asarray(tokens, np.int64)
    if chosen.ndim != 1 or (len(chosen) and not (0 <= int(chosen.min()) <= int(chosen.max()) < len(table))):
        raise ValueError(f"tokens must be ids from 0 to {len(table) - 1}, shape (n,), got shape {chosen.shape}")
    if len(table) < 2:
        raise ValueError(f"table must have at least 2 rows to compare tokens, got {len(table)}")
    rivals, farthest = min(rivals, len(table) - 1), min(farthest, len(table) - 1)
    guess = PairDistances(_plain_screen(mechanism), table).far_pair()
    excess = _pair(mechanism, table, *guess).best_excess(delta)
    screen = Screen.fitted(
        mechanism, table, 1.0 + excess * np.geomspace(0.6, 8.0, 9), _EXPONENTS, guess, delta, _nodes(table)
    )
    distances = PairDistances(screen, table)
    position = np.empty(len(table), np.int64)
    position[distances.order] = np.arange(len(table))
    cube = accounting.epsilon(mechanism, delta)
    count = len(chosen)
    worst, nearest, typical = np.empty(count), np.empty(count), np.empty(count)
    worst_rival, nearest_rival = np.empty(count, np.int64), np.empty(count, np.int64)
    rows = max(1, min(1024, (1 << 25) // len(table)))
    kernel = None
    if count * len(table) <= KERNEL_PAIRS:
        kernel = DivergenceKernel.fitted(mechanism, table, 1.0 + excess, _nodes(table)).rows(table)
    for start in range(0, count, rows):
        here = chosen[start : start + rows]
        near, far, distance = distances.rivals(position[here], rivals, farthest)
        rest = screen.epsilon(distance, delta)
        if kernel is not None:
            far, divergence = _farthest(kernel, here, farthest)
            rest = np.minimum(np.maximum(divergence + renyi_constant(1.0 + excess, delta), 0.0), cube)
        both = np.concatenate((near, far), axis=1)
        epsilons = _mutual_epsilons(mechanism, table, np.repeat(here, both.shape[1]), both.reshape(-1), delta)
        epsilons = np.minimum(epsilons.reshape(both.shape), cube)
        out = slice(start, start + len(here))
        close, distant = epsilons[:, : near.shape[1]], epsilons[:, near.shape[1] :]
        best = np.argmax(distant, axis=1)
        worst_rival[out] = far[np.arange(len(here)), best]
        worst[out] = np.minimum(np.maximum(distant.max(axis=1), rest), cube)
        nearest[out], nearest_rival[out] = close[:, 0], near[:, 0]
        typical[out] = np.median(close, axis=1)
        if progress is not None:
            progress((start + len(here)) / count)
    return TokenEpsilons(chosen, worst, worst_rival, nearest, nearest_rival, typical, rivals, delta)


@dataclass
class _Search:
    """Branch and bound over ordered pairs that refines the pair with the largest bound."""

    mechanism: Mechanism
    table: Integers
    delta: float
    cube: float
    limit: int
    lower: float = 0.0
    pair: tuple[int, int] = (0, 0)
    evaluations: int = 0

    def result(self, epsilon: float, method: str, pairs: int) -> VocabularyBound:
        """Return the outcome of :meth:`run` over ``pairs`` candidates."""
        return VocabularyBound(
            epsilon=min(epsilon, self.cube),
            epsilon_lower=min(self.lower, epsilon, self.cube),
            pair=self.pair,
            cube_epsilon=self.cube,
            delta=self.delta,
            method=method if epsilon < self.cube else "cube",
            pairs=pairs,
            evaluations=self.evaluations,
        )

    def run(self, candidates: IndexArray, bounds: FloatArray, rest: float, orders: FloatArray) -> tuple[float, str]:
        """Return the certified maximum of candidates (falling ``bounds``) and others (``rest``)."""
        # Pairs (-bound, stage, v, w); stage 0: Renyi, 1: coarse lattice, 2: fine lattice.
        heap: list[tuple[float, int, int, int]] = []
        expanded = 0
        while True:
            unexpanded = float(bounds[expanded]) if expanded < len(candidates) else rest
            top = -heap[0][0] if heap else -math.inf
            best = max(top, unexpanded)
            if best <= self.lower * (1.0 + _TOLERANCE):
                # Nothing can be above the lower bound by more than the tolerance.
                return max(best, self.lower), "loss distribution"
            if unexpanded >= top:
                if expanded >= len(candidates):
                    return rest, "renyi"
                here = candidates[expanded : expanded + _CHUNK]
                expanded += len(here)
                for item in self._expand(here, orders):
                    heapq.heappush(heap, item)
                continue
            _, stage, v, w = heap[0]
            if stage == 2:
                return top, "loss distribution"
            if self.evaluations >= self.limit:
                return top, "renyi" if stage == 0 else "loss distribution"
            points = _COARSE if stage == 0 else _FINE
            upper = min(top, _pair(self.mechanism, self.table, v, w).epsilon(self.delta, points))
            self.evaluations += 1
            heapq.heapreplace(heap, (-upper, stage + 1, v, w))
            if upper > self.lower:
                self.raise_lower(v, w, points)

    def _expand(self, candidates: IndexArray, orders: FloatArray) -> list[tuple[float, int, int, int]]:
        items = []
        for first, second in ((0, 1), (1, 0)):
            v, w = candidates[:, first], candidates[:, second]
            divergences = pair_divergences(self.mechanism, self.table[v], self.table[w], orders)
            epsilons = renyi_epsilon(orders, divergences, self.delta).min(axis=1)
            for index in np.flatnonzero(epsilons > self.lower).tolist():
                items.append((-float(epsilons[index]), 0, int(v[index]), int(w[index])))
        return items

    def raise_lower(self, v: int, w: int, points: int) -> None:
        """Raise the lower bound to that of one ordered pair, if it is larger."""
        lower = _pair(self.mechanism, self.table, v, w).epsilon_lower(self.delta, points)
        self.evaluations += 1
        if lower > self.lower:
            self.lower, self.pair = lower, (v, w)


def _sieve(mechanism: Mechanism, table: Integers, order: float, epsilon: float, delta: float) -> Sieve:
    """Return a filter of pairs whose epsilon is proven to be at most ``epsilon``."""
    # The conversion adds a constant to the divergence, so this limit is one for divergences.
    limit = np.float32((epsilon - float(renyi_constant(order, delta))) * (1.0 - 1e-6))
    rows = functools.cache(lambda: DivergenceKernel.fitted(mechanism, table, order).rows(table))  # on first use
    return lambda first, second: rows().mutual(first, second) > limit


def _nodes(table: Integers) -> int:
    return 2 * min(1024, max(128, len(table))) + 1


def _pair(mechanism: Mechanism, table: Integers, v: int, w: int) -> ProductPair:
    return ProductPair.of(mechanism.trials, mechanism.numerators(table[v]), mechanism.numerators(table[w]))


def _distinct(table: Integers) -> bool:
    return any(bool(np.any(table[start : start + 4096] != table[0])) for start in range(0, len(table), 4096))


def _plain_screen(mechanism: Mechanism) -> Screen:
    return Screen(mechanism, np.array([2.0]), np.array([1.0]), 0.5, 0.0)


def _farthest(kernel: KernelRows, tokens: IndexArray, count: int) -> tuple[IndexArray, FloatArray]:
    """Return ``count`` tokens of largest divergence from each token, and a bound for the others."""
    bounds = kernel.mutual(tokens, slice(None))
    vocabulary = bounds.shape[1]
    parts = np.argpartition(bounds, vocabulary - count - 1, axis=1)
    rest = np.take_along_axis(bounds, parts[:, [vocabulary - count - 1]], axis=1)[:, 0]
    return parts[:, vocabulary - count :], rest.astype(np.float64) * (1.0 + 1e-6)


def _mutual_epsilons(
    mechanism: Mechanism, table: Integers, first: IndexArray, second: IndexArray, delta: float
) -> FloatArray:
    """Return Renyi bounds of epsilon of token pairs, the larger of both directions."""
    result = np.empty(len(first))
    plain = _plain_screen(mechanism)
    factors = np.array([0.6, 0.85, 1.15, 1.6])
    for start in range(0, len(first), _CHUNK):
        here = slice(start, start + _CHUNK)
        a, b = table[first[here]], table[second[here]]
        # A Gaussian at the pair's distance has a best order of about 1 + sqrt(2 log(1/delta)) / mu.
        mu = np.sqrt(mechanism.trials * ((plain.features(a) - plain.features(b)) ** 2).sum(axis=1))
        excess = np.clip(math.sqrt(-2.0 * math.log(delta)) / np.maximum(mu, 1e-4), 1e-3, 1e4)
        orders = 1.0 + excess[:, None] * factors
        both = np.maximum(*(pair_divergences(mechanism, *sides, orders) for sides in ((a, b), (b, a))))
        result[here] = renyi_epsilon(orders, both, delta).min(axis=1)
        result[here][both.max(axis=1) == 0.0] = 0.0  # equal rows, where any order leaves a little
    return result


def _check(mechanism: Mechanism, table: Integers, delta: float) -> None:
    check_array("table", table, np.integer)
    if table.ndim != 2 or table.shape[1] != mechanism.dim or len(table) == 0:
        raise ValueError(f"table must have shape (tokens, {mechanism.dim}) with tokens >= 1, got {table.shape}")
    if int(table.max()) > mechanism.max_level or int(table.min()) < -mechanism.max_level:
        raise ValueError(f"table must hold levels within +-{mechanism.max_level}, got one outside")
    check_number("delta", delta, 0.0, 1.0, open_low=True, open_high=True)
