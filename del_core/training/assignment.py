"""Learned codes: which tokens share a code, with the attacker who has the LM in the constraint.

k-means gives every frequent token a code of its own, where it hides behind nothing. Here tokens
move between the codes one at a time, to where

    sum_v w(v) |e(v) - center(c(v))|^2 / variance  +  a * S

is least. S is the success of an attacker who has the LM, knows every token before the attacked one
and reads its released code z: the mean over prefixes of ``sum_z max_v P(v | prefix) P(z | v)``,
computed with the frozen LM on the training text. The weight a of the attacker is found by
bisection, so that S is at most what was asked for. A code never loses its last token: a Lagrange
multiplier on the success alone collapses to one code for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from del_core.errors import DelError
from del_core.lm.model import FrozenLM
from del_core.mechanism.base import PROBABILITY_ONE
from del_core.mechanism.categorical import CategoricalMechanism

__all__ = ["AttackSuccessError", "Prefixes", "attacker_success", "hide", "sample_prefixes"]

_LARGEST_WEIGHT = 64.0  # of the attacker: the distance hardly counts any more
_HALVINGS = 6
_SWEEPS = 3
_TOKENS = 3000  # the most frequent tokens move; those that the LM hardly ever expects need not hide
_CONTEXT = 8  # tokens that a prefix has at least
_EXPECTED = 512  # tokens that are kept of each prediction
_BLOCK = 4

Chances = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int64]


class AttackSuccessError(DelError, ValueError):
    """No codes hold the attacker at the success that was asked for."""


@dataclass(frozen=True)
class Prefixes:
    """What the LM expects after N prefixes: the likeliest tokens and their probabilities.

    Attributes:
        tokens: (N, S) token ids. chances: (N, S) probabilities, falling along a row.
    """

    tokens: Codes
    chances: Chances

    @property
    def blind(self) -> float:
        """Success of the attacker who reads no code: the least that codes can reach."""
        return float(self.chances[:, 0].mean())


@torch.no_grad()
def sample_prefixes(lm: FrozenLM, windows: int = 48, length: int = 64) -> Prefixes:
    """Return the LM's predictions within windows of its training text."""
    tokens, chances = [], []
    for part in lm.windows(lm.train, length, windows).split(_BLOCK):
        expected = lm.model(input_ids=part).logits[:, _CONTEXT:-1].float().softmax(dim=-1)
        best = expected.flatten(0, 1).topk(min(_EXPECTED, expected.shape[-1]), dim=-1)
        tokens.append(best.indices.cpu().numpy())
        chances.append(best.values.cpu().numpy())
    return Prefixes(np.concatenate(tokens), np.concatenate(chances))


def _channel(mechanism: CategoricalMechanism) -> tuple[float, float]:
    """Return the probabilities of the own code and of each other one."""
    other = mechanism.noise_numerators[0] / PROBABILITY_ONE / mechanism.codes
    return 1.0 - (mechanism.codes - 1) * other, other


def attacker_success(prefixes: Prefixes, codes: Codes, mechanism: CategoricalMechanism) -> float:
    """Return S of the module's text for codes (V,)."""
    own, other = _channel(mechanism)
    best = np.zeros((len(prefixes.tokens), mechanism.codes), np.float32)
    np.maximum.at(best, (np.arange(len(best))[:, None], codes[prefixes.tokens]), prefixes.chances)
    # For each released code: the likeliest token of the code, or the likeliest of all others.
    return float(np.maximum(own * best, other * prefixes.chances[:, :1]).sum(axis=1).mean())


@dataclass(eq=False)
class _Search:
    """Moves tokens between codes; arrays are by code and prefix.

    Attributes:
        expected: (F, N) probabilities of the F tokens that move.
        rest: (K, N) the largest probability among a code's tokens that do not move.
    """

    embeddings: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]
    prefixes: Prefixes
    mechanism: CategoricalMechanism

    def __post_init__(self) -> None:
        used = np.zeros(len(self.weights))
        np.add.at(used, self.prefixes.tokens, self.prefixes.chances)
        self.moving = np.argsort(-used, kind="stable")[: min(_TOKENS, int((used > 0).sum()))]
        self._column = np.full(len(used), -1)
        self._column[self.moving] = np.arange(len(self.moving))
        column = self._column[self.prefixes.tokens]
        at, rank = np.nonzero(column >= 0)
        self.expected = np.zeros((len(self.moving), len(column)), np.float32)
        self.expected[column[at, rank], at] = self.prefixes.chances[at, rank]
        self._still = np.nonzero(column < 0)
        mean = self.weights @ self.embeddings
        self._variance = float(self.weights @ np.square(self.embeddings).sum(axis=1) - np.square(mean).sum())

    def _centers(self, codes: Codes) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        mass = np.bincount(codes, self.weights, self.mechanism.codes).astype(np.float64)
        sums = np.zeros((self.mechanism.codes, self.embeddings.shape[1]))
        np.add.at(sums, codes, self.weights[:, None] * self.embeddings)
        return sums / np.maximum(mass, 1e-300)[:, None], mass

    def _distances(self, tokens: npt.NDArray[np.int64], centers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return squared distances (tokens, K), but for a part that is the token's alone."""
        found: npt.NDArray[np.float64] = np.square(centers).sum(axis=1) - 2.0 * self.embeddings[tokens] @ centers.T
        return found

    def sweep(self, codes: Codes, attacker_weight: float) -> Codes:
        """Move each token once; then the tokens that are not expected go to the nearest center."""
        codes, (own, other) = codes.copy(), _channel(self.mechanism)
        centers, _ = self._centers(codes)
        left = np.bincount(codes, minlength=self.mechanism.codes)
        rest = np.repeat((other / own * self.prefixes.chances[:, 0])[None], self.mechanism.codes, axis=0)
        at, rank = self._still
        np.maximum.at(rest, (codes[self.prefixes.tokens[at, rank]], at), self.prefixes.chances[at, rank])
        here, best = codes[self.moving], rest.copy()
        np.maximum.at(best, here, self.expected)
        costs = self._distances(self.moving, centers) * (self.weights[self.moving] / self._variance)[:, None]
        scale = attacker_weight * own / len(self.prefixes.tokens)
        for index, expected in enumerate(self.expected):
            code, seen = here[index], np.nonzero(expected)[0]
            if left[code] == 1:
                continue
            members = np.nonzero(here == code)[0]
            without = np.maximum(rest[code], self.expected[members[members != index]].max(axis=0, initial=0.0))
            gains = np.maximum(expected[seen] - best[:, seen], 0.0).sum(axis=1, dtype=np.float64)
            gains[code] = np.maximum(expected[seen] - without[seen], 0.0).sum(dtype=np.float64)
            chosen = int((costs[index] + scale * gains).argmin())
            if chosen != code:
                here[index], best[code] = chosen, without
                best[chosen] = np.maximum(best[chosen], expected)
                left[code] -= 1
                left[chosen] += 1
        codes[self.moving] = here
        return self._follow(codes)

    def _follow(self, codes: Codes) -> Codes:
        """Let the tokens that do not move go to the nearest center of a code in use."""
        centers, mass = self._centers(codes)
        still = np.nonzero(self._column < 0)[0]
        distances = self._distances(still, centers)
        distances[:, mass == 0.0] = math.inf
        nearest, kept = distances.argmin(axis=1), codes.copy()
        kept[still] = nearest
        for code in np.setdiff1d(codes, kept):  # the last tokens of a code stay
            kept[codes == code] = code
        return kept


def hide(
    codes: torch.Tensor,
    embeddings: torch.Tensor,
    weights: torch.Tensor,
    prefixes: Prefixes,
    mechanism: CategoricalMechanism,
    target: float,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[torch.Tensor, float]:
    """Return codes (V, 1) whose attacker succeeds at most as often as ``target``, and his success.

    Args:
        codes: (V, 1) codes to begin with, of k-means.
        embeddings: (V, b). weights: (V,), what a token counts in the distance.
        prefixes: predictions for the attacker's success.
        target: success in (0, 1). AttackSuccessError is raised if no codes reach it.
        say: called with a line about every weight that is tried.
    """
    if target <= prefixes.blind:
        raise AttackSuccessError(
            f"attack_success must be above {prefixes.blind:.3f}, what the LM alone guesses on this text, got {target}"
        )
    rows, share = embeddings.detach().double().cpu().numpy(), weights.double().cpu().numpy()
    search = _Search(rows, share / share.sum(), prefixes, mechanism)
    first = codes[:, 0].cpu().numpy()

    def tried(weight: float) -> tuple[float, Codes]:
        found = first
        for _ in range(_SWEEPS):
            found = search.sweep(found, weight)
        success = attacker_success(prefixes, found, mechanism)
        say(f"attacker's weight {weight:.3g}: success {success:.3f}")
        return success, found

    success, best = attacker_success(prefixes, first, mechanism), first
    if success > target:
        low, high = 0.0, 1.0
        success, best = tried(high)
        while success > target and high < _LARGEST_WEIGHT:
            low, high = high, 4.0 * high
            success, best = tried(high)
        if success > target:
            raise AttackSuccessError(
                f"attack_success must be at least {success:.3f}, which is the least that {mechanism.codes} codes at "
                f"epsilon {mechanism.epsilon:.3g} reach, got {target}; fewer codes reach less"
            )
        for _ in range(_HALVINGS):
            middle = (low + high) / 2.0 if low == 0.0 else math.sqrt(low * high)
            found, other = tried(middle)
            if found <= target:
                high, success, best = middle, found, other
            else:
                low = middle
    return torch.from_numpy(best)[:, None].to(codes.device), success
