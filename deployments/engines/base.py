"""What the service needs of a language-model engine; nothing above this module knows which engine it is.

An engine takes a prompt as embeddings, (tokens, hidden size) float32, and yields token ids. Text, stop strings and
end-of-text tokens are the service's business (:mod:`deployments.service.text`), so that they work alike for every
engine and
across a resumed completion.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from del_core.errors import DelError

__all__ = ["Delta", "Engine", "EngineDeadError", "EngineSampling", "FinishReason"]

FinishReason = Literal["stop", "length"]


class EngineDeadError(DelError):
    """The engine has stopped and will not answer again; its replica has to be replaced."""


@dataclass(frozen=True)
class EngineSampling:
    """How to sample one completion.

    ``max_tokens``: at least 1. ``temperature`` 0 is greedy. ``top_p`` in (0, 1]. ``seed``: None or a signed 64-bit
    integer; the same seed, prompt and engine give the same tokens. ``position``: how many tokens of the completion the
    prompt holds already (it is being resumed); with a seed, what is drawn for a token depends on its position in the
    whole completion. ``stop_token_ids``: ids that end the completion, the model's end of text included where it
    applies. ``incremental``: yield tokens as they come; without it the engine may yield all of them at the end, which
    is cheaper. ``gather_tokens``, ``gather_s``: an engine may gather tokens after the first ones until that many wait
    or one has waited that long (seconds).
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    position: int = 0
    stop_token_ids: tuple[int, ...] = field(default=(), repr=False)
    incremental: bool = True
    gather_tokens: int = 1
    gather_s: float | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """Tokens that are new since the last one; the last one says why generation ended.

    ``finish_reason`` "stop": the last token id is one of ``stop_token_ids``; "length": ``max_tokens`` were generated.
    ``cached_rows``: how many of the prompt's rows were not computed, as the cache had them; None if not known.
    ``gathered``: they have waited for others as long as they should, and are to be passed on at once.
    """

    token_ids: tuple[int, ...] = field(repr=False)
    finish_reason: FinishReason | None = None
    cached_rows: int | None = None
    gathered: bool = False


class Engine(Protocol):
    """A language-model engine that serves many requests at once."""

    @property
    def context_length(self) -> int:
        """Prompt rows and generated tokens that one request may have together; known once the engine has started."""

    async def start(self) -> None:
        """Load the model. Raises if that fails. Called once, before anything else."""

    def generate(
        self,
        request_id: str,
        embeddings: NDArray[np.float32],
        sampling: EngineSampling,
        *,
        cache_salt: str | None = None,
        shared_rows: int = 0,
    ) -> AsyncGenerator[Delta, None]:
        """Generate after ``embeddings`` (tokens, hidden size), float32 and finite, at least one row.

        ``request_id`` is unique among the requests in flight. Prompts share cached prefixes only with prompts of the
        same ``cache_salt``, except for the first ``shared_rows`` rows, which all may share. Closing the
        iterator before its end frees what the request holds.

        Raises:
            EngineDeadError: the engine has stopped, before or during this request.
        """

    async def abort(self, request_id: str) -> None:
        """Stop a request; unknown and finished ones are ignored."""

    async def check_health(self) -> None:
        """Return if the engine works; raise EngineDeadError if it has stopped."""

    async def shutdown(self) -> None:
        """Stop the engine and every process that it started. May be called more than once."""
