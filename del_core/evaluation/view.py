"""What the server's LM reads in place of a prompt under each method, and what that method's best guesser recovers.

Every method that is compared is a ``PromptView``, so that all are measured by the same code on the same passages. Noise
comes from a statistical generator: this is measurement, never a release.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from del_core.audit.attacks import reproducible_bytes
from del_core.audit.intervals import Rate
from del_core.lm.noise import NoisyTable
from del_core.mechanism import Mechanism
from del_core.mechanism.likelihood import TokenLikelihood, blocks
from del_core.vocabulary_accounting import vocabulary_epsilon

__all__ = [
    "DELTA",
    "ClearPrompt",
    "ClientCost",
    "CountsView",
    "DelView",
    "NoPrompt",
    "PromptView",
    "ServerReads",
    "TokenAttack",
    "in_front",
    "timed",
]


DELTA = 1e-6
"""Of every epsilon that is reported: two prompts that differ in one token of the vocabulary."""

TokenIds = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.floating]


@dataclass(frozen=True)
class ClientCost:
    """What protecting one prompt costs the client: seconds on this machine, and megabytes (10^6) of what it must hold.

    The tokenizer, which every method needs, is not counted.
    """

    seconds: float
    megabytes: float


@dataclass(frozen=True)
class TokenAttack:
    """What one release of each of a text's tokens gives away to the optimal guesser of single tokens.

    That guesser knows word frequencies and the law of what the server sees.

    Attributes:
        rate: of tokens that are its best guess (MAP).
        bits: gained on the true token: log2 of its probability with the release over that without, in the mean. Methods
            of one rate may differ in it, and an attacker who also knows the language can use the difference.
    """

    rate: Rate
    bits: float

    @classmethod
    def of(cls, scores: Iterable[tuple[torch.Tensor, torch.Tensor]], log_prior: torch.Tensor) -> TokenAttack:
        """From blocks of tokens (count,) and what log likelihood and prior sum up to for all of them (count, V)."""
        right, bits, count = 0, 0.0, 0
        for tokens, block in scores:
            right += int((block.argmax(1) == tokens).sum())
            of_true = block.gather(1, tokens[:, None])[:, 0]
            bits += float((of_true - log_prior[tokens] - block.logsumexp(1)).double().sum()) / math.log(2.0)
            count += len(tokens)
        return cls(Rate(right, count), bits / count)


class PromptView(Protocol):
    """One method at one level of noise.

    Attributes:
        name: the method's, as it stands in tables.
        bits_per_token: what a prompt's token costs on the wire.
        local_model: the LM that reads and writes where that is not the server's, but one on the client; else None.
    """

    name: str
    bits_per_token: float
    local_model: PreTrainedModel | None

    def embed(self, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """What the LM reads for the prompts ``tokens`` (N, T): (N, T', b), noise drawn afresh from ``generator``.

        Soft-prompt rows are in front already.
        """

    def attack(self, tokens: TokenIds, log_prior: FloatArray, seed: int) -> TokenAttack:
        """What one release of each of ``tokens`` (count,) gives away, by the posterior over the whole vocabulary.

        Computed from this method's own law of what the server sees and the unigram prior ``log_prior`` (V,).
        """

    def epsilon(self) -> float | None:
        """Of (epsilon, ``DELTA``)-DP for one token replaced by any other; None without a guarantee."""

    def client_cost(self, tokens: TokenIds) -> ClientCost:
        """Of protecting the prompt ``tokens`` (T,), measured here."""


def in_front(soft_prompt: torch.Tensor | None, embeddings: torch.Tensor) -> torch.Tensor:
    """``soft_prompt`` (rows, b) in front of every row of ``embeddings`` (N, T, b)."""
    if soft_prompt is None or not len(soft_prompt):
        return embeddings
    return torch.cat([soft_prompt.to(embeddings.dtype).expand(len(embeddings), -1, -1), embeddings], dim=1)


def timed(work: Callable[[], object], repeats: int = 5) -> float:
    """Median seconds of ``work``, after one call that is not counted."""
    work()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


class ServerReads:
    """What holds for every method in which the server's LM reads the prompt."""

    local_model: PreTrainedModel | None = None


class ClearPrompt(ServerReads):
    """The prompt as it is: the upper end of utility, no privacy. ``soft_prompt`` (rows, b) goes in front."""

    def __init__(self, embeddings: torch.Tensor, soft_prompt: torch.Tensor | None = None, name: str = "clear") -> None:
        self.name, self.embeddings, self.soft_prompt = name, embeddings, soft_prompt
        self.bits_per_token = float((len(embeddings) - 1).bit_length())

    def embed(self, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The tokens' own embeddings."""
        return in_front(self.soft_prompt, self.embeddings[tokens])

    def attack(self, tokens: TokenIds, log_prior: FloatArray, seed: int) -> TokenAttack:
        """All of them."""
        return TokenAttack(Rate(len(tokens), len(tokens)), float(-np.mean(log_prior[tokens])) / math.log(2.0))

    def epsilon(self) -> float | None:
        """None: there is no guarantee."""
        return None

    def client_cost(self, tokens: TokenIds) -> ClientCost:
        """Nothing."""
        return ClientCost(0.0, 0.0)


class NoPrompt(ServerReads):
    """Nothing is sent: the LM reads ``start`` alone, its end-of-text token, as at the beginning of a document.

    The attacker still knows word frequencies: always guessing the most frequent token succeeds at that token's rate,
    and no method can be below it.
    """

    name = "no prompt"
    bits_per_token = 0.0

    def __init__(self, embeddings: torch.Tensor, start: int) -> None:
        self.row = embeddings[start]

    def embed(self, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """One row, whatever the prompt."""
        return self.row.expand(len(tokens), 1, -1)

    def attack(self, tokens: TokenIds, log_prior: FloatArray, seed: int) -> TokenAttack:
        """Of the guess that needs no prompt."""
        return TokenAttack(Rate(int(np.sum(tokens == int(np.argmax(log_prior)))), len(tokens)), 0.0)

    def epsilon(self) -> float | None:
        """Zero: what the server sees does not depend on the tokens."""
        return 0.0

    def client_cost(self, tokens: TokenIds) -> ClientCost:
        """Nothing."""
        return ClientCost(0.0, 0.0)


class CountsView(ServerReads):
    """Binomial counts of a table's rows: whoever decodes them, client and attacker do the same.

    Args:
        levels: table (V, d), the integers that clients ship.
    """

    def __init__(self, name: str, mechanism: Mechanism, levels: npt.NDArray[np.integer]) -> None:
        self.name, self.mechanism, self.levels = name, mechanism, levels
        self.bits_per_token = float(8 * mechanism.row_bytes)

    def counts(self, tokens: TokenIds, seed: int) -> npt.NDArray[np.uint8]:
        """Of the shipped sampler (count, d), from a reproducible stream in place of the system's CSPRNG."""
        return self.mechanism.sample(self.levels[tokens], reproducible_bytes(seed))

    def attack(self, tokens: TokenIds, log_prior: FloatArray, seed: int) -> TokenAttack:
        """Of the binomial likelihood, ``del_core.mechanism.likelihood``."""
        likelihood = TokenLikelihood.of(self.mechanism, self.levels)
        codes, prior = self.counts(tokens, seed), torch.as_tensor(log_prior).float()

        def scores() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for here in blocks(len(tokens), len(prior)):
                yield torch.from_numpy(tokens[here]), torch.from_numpy(likelihood(codes[here])).add_(prior)

        return TokenAttack.of(scores(), prior)

    def epsilon(self) -> float | None:
        """Vocabulary-tight, an upper bound."""
        return vocabulary_epsilon(self.mechanism, self.levels, DELTA).epsilon

    def client_cost(self, tokens: TokenIds) -> ClientCost:
        """The lookup and the noise, from the system's CSPRNG, as a client does it; and the table."""
        seconds = timed(lambda: self.mechanism.sample(self.levels[tokens]))
        return ClientCost(seconds, self.levels.nbytes / 1e6)


class DelView(CountsView):
    """Counts that a decoder in training reads, behind a soft prompt: DEL and this project.

    Args:
        noisy: table (V, d) and mechanism.
        decode: from dequantised coordinates, not yet limited, (N, T, d) to embeddings (N, T, b); a ``NoisyDecoder``.
        soft_prompt: (rows, b), or None to leave it out.
    """

    def __init__(
        self,
        name: str,
        noisy: NoisyTable,
        decode: Callable[[torch.Tensor], torch.Tensor],
        soft_prompt: torch.Tensor | None = None,
    ) -> None:
        super().__init__(name, noisy.mechanism, noisy.levels.cpu().numpy())
        self.noisy, self.decode, self.soft_prompt = noisy, decode, soft_prompt

    @torch.no_grad()
    def embed(self, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Decoded rows of one noisy release, behind the soft prompt."""
        return in_front(self.soft_prompt, self.decode(self.noisy.sample(tokens, generator)))
