"""Renyi divergences of all token pairs at one order, nearly exact, as one matrix product.

The divergence of two Bernoullis at a fixed order is so smooth in the two probabilities that a few
products f_k(p) g_k(q) approximate it. With the factors of all coordinates in F_v and G_w,

    D_a(v || w) <= u F_v . G_w + slack       for every ordered pair of tokens,

where slack bounds the error of the approximation and of rounding. Rank times as costly as a
distance, it knows direction and the clips. Proof: ``docs/privacy/vocabulary.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from del_core.mechanism import Mechanism
from del_core.mechanism.base import PROBABILITY_ONE, Integers
from del_core.vocabulary_accounting.screen import FloatArray, bernoulli_divergence, probability_grid

_NODES = 2049
_LARGEST_RANK = 12
_SAMPLE = 129  # columns from which the factors are found


@dataclass(frozen=True)
class DivergenceKernel:
    """Factors with D_a(p || q) <= left[i] . right[k] + error for p in cell i, q in cell k."""

    mechanism: Mechanism
    order: float
    edges: FloatArray  # rising borders (cells + 1,), or the probabilities (cells,) of a few levels
    left: FloatArray  # (cells, rank)
    right: FloatArray  # (cells, rank)
    error: float  # per coordinate and trial, in nats

    @classmethod
    def fitted(cls, mechanism: Mechanism, table: Integers, order: float, nodes: int = _NODES) -> DivergenceKernel:
        """Fit factors to the range of levels in ``table``, of the lowest sufficient rank."""
        largest = int(max(int(table.max()), -int(table.min()), 1))
        edges = probability_grid(mechanism, largest, nodes)
        exact = len(edges) == 2 * largest + 1
        low, high = (edges, edges) if exact else (edges[:-1], edges[1:])
        middle = 0.5 * (low + high)
        divergence = _symmetric(middle, middle, order)
        # Largest divergence between two cells: that of their outer borders.
        widest = divergence if exact else _symmetric(high, low, order)
        sample = np.unique(np.linspace(0, len(middle) - 1, _SAMPLE).astype(np.int64))
        basis, sizes, _ = np.linalg.svd(divergence[:, sample], full_matrices=False)
        floor = float(np.max(widest - divergence))
        left, right, error = np.zeros((len(middle), 0)), np.zeros((len(middle), 0)), np.inf
        for rank in range(2, min(_LARGEST_RANK, len(sizes)) + 1):
            left = basis[:, :rank]
            right = divergence.T @ left
            error = float(np.max(widest - left @ right.T))
            if error <= 1.05 * floor + 1e-7 * float(divergence.max()):
                break
        scale = np.sqrt(np.maximum(np.linalg.norm(right, axis=0), 1e-300))  # even out the two sides
        return cls(mechanism, order, edges, left * scale, right / scale, max(error, 0.0))

    def rows(self, table: Integers) -> KernelRows:
        """Return the factors of every token of ``table`` (rows, dim)."""
        shape = (len(table), table.shape[1] * self.left.shape[1])
        left, right = np.empty(shape, np.float32), np.empty(shape, np.float32)
        for start in range(0, len(table), 4096):
            here = slice(start, start + 4096)
            q = self.mechanism.numerators(table[here]) / PROBABILITY_ONE
            cell = np.searchsorted(self.edges, q, side="left")
            if len(self.left) < len(self.edges):  # cells between edges, a border belonging to the lower cell
                cell = np.maximum(cell - 1, 0)
            left[here] = self.left[cell].reshape(len(q), -1)
            right[here] = self.right[cell].reshape(len(q), -1)
        # Single precision: (columns + 2) 2^-24 of the product of the norms, doubled.
        rounding = (shape[1] + 4) * 2.0**-23 * _largest_norm(left) * _largest_norm(right)
        trials = self.mechanism.trials
        return KernelRows(left, right, trials, trials * (table.shape[1] * self.error + rounding))


@dataclass(frozen=True)
class KernelRows:
    """F and G of a table, float32 (V, dim rank), with the trials and the slack of the bound."""

    left: npt.NDArray[np.float32]
    right: npt.NDArray[np.float32]
    trials: int
    slack: float

    def mutual(self, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64] | slice) -> npt.NDArray[np.float32]:
        """Return bounds of max(D(v || w), D(w || v)) for v in ``first``, w in ``second``."""
        bound = self.left[first] @ self.right[second].T
        np.maximum(bound, self.right[first] @ self.left[second].T, out=bound)
        bound *= np.float32(self.trials)
        bound += np.float32(self.slack * (1.0 + 1e-6))
        return np.asarray(bound, np.float32)


def _symmetric(upper: FloatArray, lower: FloatArray, order: float) -> FloatArray:
    """Return the divergence of upper[i] from lower[k] for i >= k, mirrored for i < k."""
    cells = len(upper)
    result = np.zeros((cells, cells))
    i, k = np.tril_indices(cells)
    values = bernoulli_divergence(upper[i], lower[k], order)
    result[i, k] = values
    result[cells - 1 - i, cells - 1 - k] = values
    return result


def _largest_norm(rows: npt.NDArray[np.float32]) -> float:
    return float(np.sqrt(np.max(np.einsum("ij,ij->i", rows, rows))))
