"""Views of a prompt: the embeddings that the server's model reads, and the tokens that they reveal.

Noise comes from a seeded generator: this is measurement, never a release.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from del_core.audit.attacks.base import reproducible_bytes
from del_core.audit.intervals import Rate
from del_core.bundle import Adapter
from del_core.lm.model import BaseLM
from del_core.mechanism import TokenMechanism
from del_core.mechanism.likelihood import blocks

TokenIds = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Recovery:
    """Gain of the optimal guesser of single tokens from one release of each token of a text.

    The guesser knows word frequencies and the distribution of what the server receives.

    Attributes:
        rate: share of tokens that are its best guess (MAP).
        bits: mean of log2 posterior over prior of the true token, which an attacker who also knows
            the language can use.
    """

    rate: Rate
    bits: float

    @classmethod
    def from_scores(cls, scores: Iterable[tuple[torch.Tensor, torch.Tensor]], log_prior: torch.Tensor) -> Recovery:
        """Return the figures from blocks of tokens (count,) and log posteriors (count, V)."""
        right, bits, count = 0, 0.0, 0
        for tokens, block in scores:
            right += int((block.argmax(1) == tokens).sum())
            of_true = block.gather(1, tokens[:, None])[:, 0]
            bits += float((of_true - log_prior[tokens] - block.logsumexp(1)).double().sum()) / math.log(2.0)
            count += len(tokens)
        return cls(Rate(right, count), bits / count)

    @classmethod
    def from_prior(cls, tokens: TokenIds, log_prior: FloatArray) -> Recovery:
        """Return the figures of always guessing the most frequent token."""
        return cls(Rate.from_hits(tokens == int(np.argmax(log_prior))), 0.0)


class ServerView(Protocol):
    """One method at one noise level; ``bits_per_token`` are those on the wire.

    ``soft_prompt`` (rows, b) stands in front of the prompt, and of its begin-of-text token. The LM
    answers with ``adapter``, if there is one.
    """

    name: str
    bits_per_token: float
    soft_prompt: torch.Tensor | None
    adapter: Adapter | None

    def embed(self, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return embeddings (N, T', b) of the prompts ``tokens`` (N, T) without what precedes."""

    def attack(self, tokens: TokenIds, log_prior: FloatArray, seed: int) -> Recovery:
        """Return the recovery of ``tokens`` (count,) from a release of each, under a prior (V,)."""


def in_front(soft_prompt: torch.Tensor | None, embeddings: torch.Tensor) -> torch.Tensor:
    """Return ``soft_prompt`` (rows, b) in front of every row of ``embeddings`` (N, T, b)."""
    if soft_prompt is None or not len(soft_prompt):
        return embeddings
    return torch.cat([soft_prompt.to(embeddings.dtype).expand(len(embeddings), -1, -1), embeddings], dim=1)


def whole_prompt(lm: BaseLM, view: ServerView, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return everything that the model reads for prompts (N, T), as it is served."""
    return in_front(view.soft_prompt, lm.begin(view.embed(tokens, generator)))


class ClearPrompt:
    """The prompt itself: the upper end of utility, without privacy."""

    soft_prompt: torch.Tensor | None = None
    adapter: Adapter | None = None

    def __init__(self, embeddings: torch.Tensor, name: str = "clear") -> None:
        self.name, self.embeddings = name, embeddings
        self.bits_per_token = float((len(embeddings) - 1).bit_length())

    def embed(self, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return the tokens' own embeddings."""
        return self.embeddings[tokens]

    def attack(self, tokens: TokenIds, log_prior: FloatArray, seed: int) -> Recovery:
        """Return full recovery."""
        return Recovery(Rate(len(tokens), len(tokens)), float(-np.mean(log_prior[tokens])) / math.log(2.0))


class NoPrompt:
    """No prompt: the model reads only ``start``, as before a document.

    That is its end-of-text token, or None where every prompt has a begin-of-text token anyway. The
    guess is always the most frequent token: no method can have a lower attack success.
    """

    name = "no prompt"
    bits_per_token = 0.0
    soft_prompt: torch.Tensor | None = None
    adapter: Adapter | None = None

    def __init__(self, embeddings: torch.Tensor, start: int | None) -> None:
        self.rows = embeddings[:0] if start is None else embeddings[start : start + 1]

    def embed(self, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return one row, or none, for each prompt."""
        return self.rows.expand(len(tokens), -1, -1)

    def attack(self, tokens: TokenIds, log_prior: FloatArray, seed: int) -> Recovery:
        """Return the recovery of the guess that needs no prompt."""
        return Recovery.from_prior(tokens, log_prior)


class CountsView:
    """Released counts of the rows of a client's table (V, d), before a subclass decodes them."""

    soft_prompt: torch.Tensor | None = None
    adapter: Adapter | None = None

    def __init__(self, name: str, mechanism: TokenMechanism, levels: npt.NDArray[np.integer]) -> None:
        self.name, self.mechanism, self.levels = name, mechanism, levels
        self.bits_per_token = float(8 * mechanism.row_bytes)

    def counts(self, tokens: TokenIds, seed: int) -> npt.NDArray[np.uint8]:
        """Return counts (count, dim) of the shipped sampler, from a seeded source."""
        return self.mechanism.sample(self.levels[tokens], reproducible_bytes(seed))

    def attack(self, tokens: TokenIds, log_prior: FloatArray, seed: int) -> Recovery:
        """Return the recovery by the mechanism's likelihood."""
        likelihood = self.mechanism.likelihood(self.levels)
        counts, prior = self.counts(tokens, seed), torch.as_tensor(log_prior).float()
        scores = (
            (torch.from_numpy(tokens[here]), torch.from_numpy(likelihood(counts[here])).add_(prior))
            for here in blocks(len(tokens), len(prior))
        )
        return Recovery.from_scores(scores, prior)
