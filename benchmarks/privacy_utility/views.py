"""Views of the compared methods, with their guarantees and the client's cost."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from del_core.bundle import Adapter
from del_core.evaluation import view
from del_core.evaluation.view import ServerView, TokenIds
from del_core.lm.model import BaseLM
from del_core.lm.noise import NoisyTable
from del_core.vocabulary_accounting import vocabulary_epsilon

__all__ = [
    "DELTA",
    "ClearPrompt",
    "ClientCost",
    "DelView",
    "MethodView",
    "NoPrompt",
    "ServerReads",
    "timed",
]

DELTA = 1e-6
"""Delta of every reported epsilon, for two prompts that differ in one token of the vocabulary."""


@dataclass(frozen=True)
class ClientCost:
    """Client's cost of protecting one prompt: seconds on this machine, and megabytes (10^6) held.

    The tokenizer, which every method needs, is not counted.
    """

    seconds: float
    megabytes: float


class MethodView(ServerView, Protocol):
    """A method that is compared.

    Attributes:
        local_model: the model on the client that reads and writes; None where the server's does.
    """

    local_model: BaseLM | None

    def epsilon(self) -> float | None:
        """Return epsilon at ``DELTA`` for one replaced token; None without a guarantee."""

    def client_cost(self, tokens: TokenIds) -> ClientCost:
        """Measure the cost of protecting the prompt ``tokens`` (T,)."""


def timed(work: Callable[[], object], repeats: int = 5) -> float:
    """Return the median duration of ``work`` in seconds, after one call that is not counted."""
    work()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


class ServerReads:
    """Base of the methods in which the server's language model reads the prompt."""

    local_model: BaseLM | None = None
    soft_prompt: torch.Tensor | None = None
    adapter: Adapter | None = None


class ClearPrompt(ServerReads, view.ClearPrompt):
    """The prompt itself, which costs the client nothing."""

    def epsilon(self) -> float | None:
        """Return None: there is no guarantee."""
        return None

    def client_cost(self, tokens: TokenIds) -> ClientCost:
        """Return no cost."""
        return ClientCost(0.0, 0.0)


class NoPrompt(ServerReads, view.NoPrompt):
    """No prompt, which costs the client nothing."""

    def epsilon(self) -> float | None:
        """Return 0: the server's input does not depend on the tokens."""
        return 0.0

    def client_cost(self, tokens: TokenIds) -> ClientCost:
        """Return no cost."""
        return ClientCost(0.0, 0.0)


class DelView(ServerReads, view.CountsView):
    """Counts that a decoder in training reads, behind a soft prompt: DEL and this project.

    Args: noisy: table (V, d) and mechanism. decode: from dequantized coordinates without a norm
        limit, (N, T, d), to embeddings (N, T, b). soft_prompt: (rows, b), or None for none.
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
        """Return decoded rows of one noisy release."""
        return self.decode(self.noisy.sample(tokens, generator))

    def epsilon(self) -> float | None:
        """Return an upper bound of epsilon over the vocabulary."""
        return vocabulary_epsilon(self.mechanism, self.levels, DELTA).epsilon

    def client_cost(self, tokens: TokenIds) -> ClientCost:
        """Measure lookup and noise, with the operating system's randomness; count the table."""
        seconds = timed(lambda: self.mechanism.sample(self.levels[tokens]))
        return ClientCost(seconds, self.levels.nbytes / 1e6)
