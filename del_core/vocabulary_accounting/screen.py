"""Screen of token pairs: a certified bound of a pair's divergence by a Euclidean distance.

Every token has a feature vector f_v. For every order a of a list and every ordered pair of tokens

    D_a(v || w) <= u kappa_a (a/2) (|f_v - f_w| + slack)^2.                           (*)

All distances are one blockwise matrix product, and pairs far below the largest need no evaluation.
kappa_a is the largest ratio of the two sides over a grid of probabilities. Proof:
``docs/privacy/vocabulary.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from del_core.accounting.product_pair import renyi_constant, renyi_epsilon
from del_core.mechanism import Mechanism
from del_core.mechanism.base import DEFAULT_DELTA, PROBABILITY_ONE, Integers

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]

_ULPS = 2.0**-50
_ROUNDING = 1e-9
"""Relative room for the rounding of what is computed without cancellation."""

_BLOCK = 2048
_SIEVE_FROM = 4096  # pairs in a block; fewer cost less to evaluate one by one
_PAIR_BLOCK = 1 << 16  # coordinates of pairs evaluated at once


def pair_divergences(mechanism: Mechanism, first: Integers, second: Integers, orders: FloatArray) -> FloatArray:
    """Return Renyi divergences (pairs, A) of levels (pairs, dim) in nats, rounded up.

    ``orders``, above 1, have shape (A,) for all pairs or (pairs, A).
    """
    pairs, dim = first.shape
    orders = np.broadcast_to(np.asarray(orders, np.float64), (pairs, np.shape(orders)[-1]))
    result = np.empty(orders.shape)
    rows = max(1, _PAIR_BLOCK // dim)
    for start in range(0, pairs, rows):
        here = slice(start, start + rows)
        log_p, log_p_failure = _logs(mechanism.numerators(first[here]))
        log_q, log_q_failure = _logs(mechanism.numerators(second[here]))
        success, failure = log_p - log_q, log_p_failure - log_q_failure
        differ = np.count_nonzero(success, axis=1)  # coordinates that agree add nothing, not even rounding
        for column in range(orders.shape[1]):
            excess = orders[here, column, None] - 1.0
            terms = np.logaddexp(log_p + excess * success, log_p_failure + excess * failure)
            terms[success == 0.0] = 0.0
            # A term rounds by less than 2^-47; the sum of logarithms is of the divergence's size.
            result[here, column] = mechanism.trials * (terms.sum(axis=1) + 8 * differ * _ULPS) / excess[:, 0]
    return np.maximum(result, 0.0)


def _logs(numerators: npt.NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
    return np.log(numerators / PROBABILITY_ONE), np.log((PROBABILITY_ONE - numerators) / PROBABILITY_ONE)


@dataclass(frozen=True)
class Screen:
    """The bound (*) for a list of orders, with its features.

    The feature of a coordinate is f(q) = 2 integral from 1/2 to q of (4 t (1-t))^-exponent dt. At
    exponent 1/2 this is the arcsine, whose squared difference is twice the divergence over u to
    first order. Larger exponents fit high orders better near the clips of a mechanism with little
    noise.
    """

    mechanism: Mechanism
    orders: FloatArray
    kappa: FloatArray
    exponent: float
    slack: float

    @classmethod
    def fitted(
        cls,
        mechanism: Mechanism,
        table: Integers,
        orders: npt.ArrayLike,
        exponents: tuple[float, ...] = (0.5,),
        example: tuple[int, int] | None = None,
        delta: float = DEFAULT_DELTA,
        nodes: int = 2049,
    ) -> Screen:
        """Fit kappa to the range of levels in ``table``, with the exponent in [0.5, 1) that is best
        for the two tokens of ``example`` at ``delta``.

        ``nodes`` is the most probabilities of the grid; no more levels than this need no slack.
        """
        largest = int(max(int(table.max()), -int(table.min()), 1))
        grid = probability_grid(mechanism, largest, nodes)
        order_array = np.asarray(orders, np.float64)
        # The grid is symmetric about 1/2 and D(p || q) = D(1-p || 1-q), so p > q is enough.
        above, below = np.tril_indices(len(grid), -1)
        features = [_feature(grid, exponent) for exponent in exponents]
        squares = [(f[above] - f[below]) ** 2 for f in features]
        kappas = []
        for order in order_array.tolist():
            divergence = bernoulli_divergence(grid[above], grid[below], order)
            kappas.append([float(np.max(divergence / square)) / (0.5 * order) for square in squares])
        screens, exact = [], len(grid) == 2 * largest + 1
        for exponent, f, kappa in zip(exponents, features, np.array(kappas).T, strict=True):
            gap = 0.0 if exact else float(np.max(np.diff(f)))
            slack = 2.0 * gap * float(np.sqrt(mechanism.dim))
            screens.append(cls(mechanism, order_array, kappa * (1.0 + _ROUNDING), exponent, slack))
        if example is None or len(screens) == 1:
            return screens[0]
        rows = table[list(example)]

        def bound(screen: Screen) -> float:
            f = screen.features(rows)
            return float(screen.epsilon(np.linalg.norm(f[0] - f[1]), delta))

        return min(screens, key=bound)

    def features(self, levels: Integers) -> FloatArray:
        """Return f of every coordinate of ``levels`` (rows, dim)."""
        distinct, inverse = np.unique(levels, return_inverse=True)
        values = _feature(self.mechanism.numerators(distinct) / PROBABILITY_ONE, self.exponent)
        return np.asarray(values[inverse.reshape(levels.shape)], np.float64)

    def divergences(self, distances: npt.ArrayLike) -> FloatArray:
        """Return the right side of (*), shape distances.shape + (orders,)."""
        x = np.asarray(distances, np.float64)[..., None] + self.slack
        return np.asarray(0.5 * self.mechanism.trials * self.kappa * self.orders * x * x, np.float64)

    def epsilon(self, distances: npt.ArrayLike, delta: float) -> FloatArray:
        """Return an upper bound of epsilon of all pairs at these distances; it grows with them."""
        return np.asarray(renyi_epsilon(self.orders, self.divergences(distances), delta).min(axis=-1), np.float64)

    def distance(self, epsilon: float, delta: float) -> float:
        """Return the largest distance at which every pair is within ``epsilon``, or 0."""
        # At every order the bound is a square of the distance plus a constant.
        scale = 0.5 * self.mechanism.trials * self.kappa * self.orders
        squares = (epsilon - renyi_constant(self.orders, delta)) / scale
        return max(0.0, math.sqrt(max(0.0, float(squares.max()))) * (1.0 - _ROUNDING) - self.slack)


def probability_grid(mechanism: Mechanism, largest: int, nodes: int) -> FloatArray:
    """Return the probabilities of all levels in -largest..largest, or a grid of ``nodes``."""
    if 2 * largest + 1 <= nodes:
        return mechanism.numerators(np.arange(-largest, largest + 1)) / PROBABILITY_ONE
    end = float(mechanism.numerators(np.array([largest]))[0]) / PROBABILITY_ONE
    half = 0.5 * np.sin(np.linspace(0.0, np.arcsin(2.0 * end - 1.0), nodes // 2 + 1)[1:])
    half[-1] = end - 0.5
    return np.concatenate((0.5 - half[::-1], [0.5], 0.5 + half))


def bernoulli_divergence(p: FloatArray, q: FloatArray, order: float) -> FloatArray:
    """Return D_a(Bernoulli(p) || Bernoulli(q)) by element, plus a bound of the rounding error.

    With t = p - q, sum p^a q^(1-a) - 1 = q G(t/q) + (1-q) G(-t/(1-q)) for G(x) = (1+x)^a - 1 - a x
    >= 0: the linear terms cancel before the evaluation, whose rounding error is 2^-52 of a |t|.
    """
    success, failure = (p - q) / q, (q - p) / (1.0 - q)
    up, down = order * np.log1p(success), order * np.log1p(failure)
    if float(np.max(up)) > 600.0 or float(np.max(down)) > 600.0:
        value = np.logaddexp(np.log(q) + up, np.log1p(-q) + down) + _ULPS * (1.0 + np.abs(up) + np.abs(down))
    else:
        excess = q * (np.expm1(up) - order * success) + (1.0 - q) * (np.expm1(down) - order * failure)
        value = np.log1p(np.maximum(excess, 0.0) + _ULPS * order * np.abs(p - q))
    return np.asarray(value / (order - 1.0), np.float64)


def _feature(q: FloatArray, exponent: float) -> FloatArray:
    if exponent == 0.5:
        return np.asarray(np.arcsin(2.0 * q - 1.0), np.float64)
    shape = 1.0 - exponent  # an incomplete beta function
    scale = 2.0 * 4.0**-exponent * float(special.beta(shape, shape))
    return np.asarray(scale * (special.betainc(shape, shape, q) - 0.5), np.float64)


class PairDistances:
    """Distances between the features of all tokens by single-precision products, errors bounded."""

    def __init__(self, screen: Screen, table: Integers) -> None:
        tokens, dim = table.shape
        features = np.empty((tokens, dim))
        for start in range(0, tokens, _BLOCK):
            features[start : start + _BLOCK] = screen.features(table[start : start + _BLOCK])
        features -= features.mean(axis=0)
        radii = np.linalg.norm(features, axis=1)
        self.order: IndexArray = np.argsort(-radii, kind="stable")
        """Token ids by falling distance from the mean, so that most pairs of blocks are skipped."""
        self.radii: FloatArray = radii[self.order]
        """Falling distances from the mean; two tokens are at most the sum of their radii apart."""
        self._rows = features.astype(np.float32)[self.order]
        self._squares = np.einsum("ij,ij->i", self._rows, self._rows, dtype=np.float64)
        # Rounding to single precision moves a distance by 2^-24 (|f_v| + |f_w|), the product's
        # accumulation errs by (dim + 2) 2^-24 |f_v| |f_w|; together below this share of the product
        # of the radii, doubled for safety.
        self._error = 2.0 * (dim + 10) * 2.0**-23

    def __len__(self) -> int:
        return len(self.radii)

    def squares(self, rows: slice, columns: slice) -> npt.NDArray[np.float32]:
        """Return squared distances of two ranges of :attr:`order` plus the error bound."""
        block = self._products(rows, columns)
        top = float(self.radii[rows].max()), float(self.radii[columns].max())
        block += np.float32(self._error * (max(top) ** 2))
        return block

    def _products(self, rows: slice | IndexArray, columns: slice) -> npt.NDArray[np.float32]:
        block: npt.NDArray[np.float32] = self._rows[rows] @ self._rows[columns].T
        block *= -2.0
        block += self._squares[rows].astype(np.float32)[:, None]
        block += self._squares[columns].astype(np.float32)[None, :]
        return block

    def far_pair(self) -> tuple[int, int]:
        """Return two tokens far apart, found by hops to the farthest one."""
        best, pair = -1.0, (0, 0)
        for start in range(min(4, len(self))):
            here = start
            for _ in range(6):
                distances = ((self._rows - self._rows[here]).astype(np.float64) ** 2).sum(axis=1)
                there = int(np.argmax(distances))
                if distances[there] <= best:
                    break
                best, pair, here = float(distances[there]), (here, there), there
        return int(self.order[pair[0]]), int(self.order[pair[1]])

    def beyond(
        self,
        distance: float,
        limit: int,
        progress: Callable[[float], None] | None = None,
        sieve: Callable[[IndexArray, IndexArray], npt.NDArray[np.bool_]] | None = None,
    ) -> tuple[IndexArray, FloatArray, float]:
        """Return at most ``limit`` unordered pairs farther apart than ``distance``, farthest first.

        The result is token ids (pairs, 2); falling upper bounds of their distances (pairs,); and a
        bound of the distance of all other pairs, ``distance`` if the limit was not reached.
        ``sieve`` is called with the token ids of the rows and columns of a block with many pairs;
        pairs where it returns False are left out, and not bounded.
        """
        threshold, tokens = distance * distance, len(self)
        found: list[tuple[IndexArray, npt.NDArray[np.float32]]] = []
        held = 0
        starts = range(0, tokens, _BLOCK)
        done, total = 0, len(starts) * (len(starts) + 1) // 2
        for i, row in enumerate(starts):
            for column in starts[: i + 1]:
                done += 1
                reach = self.radii[row] + self.radii[column]
                if reach * reach * (1.0 + 1e-6) >= threshold:
                    block = self.squares(slice(row, row + _BLOCK), slice(column, column + _BLOCK))
                    hits = block > np.float32(threshold * (1.0 - 1e-6))
                    if sieve is not None and int(np.count_nonzero(hits)) > _SIEVE_FROM:
                        hits &= sieve(self.order[row : row + _BLOCK], self.order[column : column + _BLOCK])
                    v, w = np.nonzero(hits)
                    if column == row:
                        v, w = v[v > w], w[v > w]
                    if len(v):
                        found.append((np.stack((v + row, w + column), axis=1), block[v, w]))
                        held += len(v)
                if held > 2 * limit:
                    pairs, squares = _farthest(found, limit)
                    found, held, threshold = [(pairs, squares)], limit, float(squares[-1])
                if progress is not None:
                    progress(done / total)
        pairs, squares = _farthest(found, limit)
        if held > limit:
            threshold = max(threshold, float(squares[-1]))
        room = 1.0 + 1e-6
        return self.order[pairs], np.sqrt(np.maximum(squares.astype(np.float64), 0.0)), float(np.sqrt(threshold)) * room

    def rivals(self, positions: IndexArray, near: int, far: int) -> tuple[IndexArray, IndexArray, FloatArray]:
        """Return the nearest and farthest tokens of some, given by position in :attr:`order`.

        The result is token ids (n, near), nearest first; token ids (n, far), unordered; and a bound
        (n,) of the distance of all tokens outside the latter.
        """
        block = self._products(positions, slice(None))
        rows = np.arange(len(positions))[:, None]
        parts = np.argpartition(block, len(self) - far - 1, axis=1)
        distant, next_one = parts[:, len(self) - far :], parts[:, len(self) - far - 1]
        error = self._error * float(self.radii[0]) ** 2
        rest = np.sqrt(np.maximum(block[rows[:, 0], next_one].astype(np.float64), 0.0) + error)
        block[rows[:, 0], positions] = np.inf
        close = np.argpartition(block, near - 1, axis=1)[:, :near]
        close = np.take_along_axis(close, np.argsort(np.take_along_axis(block, close, axis=1), axis=1), axis=1)
        return self.order[close], self.order[distant], rest


def _farthest(
    found: list[tuple[IndexArray, npt.NDArray[np.float32]]], limit: int
) -> tuple[IndexArray, npt.NDArray[np.float32]]:
    if not found:
        return np.empty((0, 2), np.int64), np.empty(0, np.float32)
    pairs, squares = np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])
    best = np.argsort(-squares, kind="stable")[:limit]
    return pairs[best], squares[best]
