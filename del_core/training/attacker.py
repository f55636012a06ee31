"""The attacker whom a learned encoder is held against: he guesses tokens from their counts.

``map`` knows how often tokens occur. ``language-model`` has the LM and knows every token before the
attacked one, which an attack of the audit has to guess; he does not use what comes after. His
success is

    E max_v P(v | prefix, K),   P(v | prefix, K) ~ P_LM(v | prefix) P(K | v).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from del_core.audit.attacks.base import reproducible_bytes
from del_core.audit.intervals import Rate
from del_core.lm.model import FrozenLM
from del_core.mechanism import Mechanism

__all__ = ["LANGUAGE_MODEL", "ContextAttack", "expected_tokens"]

LANGUAGE_MODEL = "language-model"
"""Name of the attacker with the LM in results."""

_PAIRS = 4e7  # of attacked tokens and vocabulary: 160 MB of log probabilities
_MOST_TOKENS = 4_000
_BLOCK = 64  # attacked tokens at once


@torch.no_grad()
def expected_tokens(lm: FrozenLM, tokens: torch.Tensor) -> torch.Tensor:
    """Return log P_LM(v | tokens before) for every position of ``tokens`` (N, T): (N, T, V).

    A first token without a begin-of-text token before it is expected as often as it occurs.
    """
    logits = lm.model(inputs_embeds=lm.begin(lm.embeddings[tokens])).logits.float()
    expected = torch.log_softmax(logits[:, :-1], dim=-1)
    if lm.bos_token_id is None:
        first = lm.unigram().log().to(expected).expand(len(tokens), 1, -1)
        expected = torch.cat([first, expected], dim=1)
    return expected


@dataclass(frozen=True, eq=False)
class ContextAttack:
    """The attacker with the LM, on tokens (N,) of the validation part.

    Attributes:
        tokens: (N,) what is attacked. expected: (N, V) log P_LM(v | prefix).
    """

    tokens: npt.NDArray[np.int64]
    expected: npt.NDArray[np.float32]

    @classmethod
    def prepare(cls, lm: FrozenLM, length: int, at_most: int = _MOST_TOKENS) -> ContextAttack:
        """Take windows of ``length`` tokens of the validation part, ``at_most`` tokens in all."""
        count = max(1, int(min(at_most, _PAIRS / len(lm.embeddings))) // length)
        windows = lm.windows(lm.validation, length, count)
        expected = torch.cat([expected_tokens(lm, part).flatten(0, 1) for part in windows.split(4)])
        return cls(windows.flatten().cpu().numpy(), expected.cpu().numpy())

    def rate(self, table: npt.NDArray[np.integer]) -> Callable[[Mechanism, int], Rate]:
        """Return how a mechanism behind ``table`` (V, d) is measured, under noise of a seed."""

        def measured(mechanism: Mechanism, seed: int) -> Rate:
            counts = mechanism.sample(table[self.tokens], reproducible_bytes(seed))
            likelihood, hits = mechanism.likelihood(table), 0
            for first in range(0, len(self.tokens), _BLOCK):
                part = slice(first, first + _BLOCK)
                guesses = (likelihood(counts[part]) + self.expected[part]).argmax(axis=1)
                hits += int((guesses == self.tokens[part]).sum())
            return Rate(hits, len(self.tokens))

        return measured
