"""The room of the server's context: what a prompt and its answer may have together.

The server states its context with the bundle and with the models. A prompt that leaves no room for
an answer is refused, and ``max_tokens`` is cut to the room, before anything is drawn, charged or
sent. The statement is not a guarantee: a false one costs answers, never privacy.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from client_lib.errors import ContextFullError
from client_lib.prompts.encoder import Encoder
from client_lib.prompts.spans import CLEAR
from client_lib.types import Model
from del_core.wire import Sampling

_TRUSTED_FOR_S = 60.0  # a tight statement that is older is asked for again


class Context:
    """The server's context length, as stated last; shared by everything that ``with_options`` made.

    Assignments are single, so that threads need no lock.
    """

    def __init__(self) -> None:
        self._stated: tuple[int | None, float] | None = None
        self._is_tight = False

    @property
    def must_be_asked(self) -> bool:
        """Whether no statement is known, or an old one left too little room in the last call."""
        stated = self._stated
        return stated is None or (self._is_tight and time.monotonic() - stated[1] > _TRUSTED_FOR_S)

    def learn(self, length: int | None) -> None:
        """Keep a statement; None is that of a server that makes none."""
        self._stated, self._is_tight = (length, time.monotonic()), False

    def learn_from(self, models: Sequence[Model]) -> None:
        """Keep the statement of a list of models."""
        self.learn(next((model.context_length for model in models if model.context_length is not None), None))

    def forget(self) -> None:
        """Drop a statement that the server has contradicted."""
        self._stated = None

    def room(self, encoder: Encoder, variant: str) -> int | None:
        """Return the most tokens that a prompt and its answer may have together, or None."""
        length = None if self._stated is None else self._stated[0]
        if length is None:
            return None
        soft = 0 if variant == CLEAR else encoder.bundle.variant(variant).soft_prompt_length
        return max(0, length - soft)

    def check(self, encoder: Encoder, variant: str, tokens: int) -> None:
        """Raise ``ContextFullError`` if a prompt of ``tokens`` leaves no room for an answer."""
        room = self.room(encoder, variant)
        if room is not None and tokens >= room:
            self._is_tight = True
            raise ContextFullError.of(tokens, room)

    def cut(self, encoder: Encoder, variant: str, tokens: int, sampling: Sampling) -> Sampling:
        """Return the sampling with ``max_tokens`` cut to the room behind a prompt of ``tokens``."""
        room = self.room(encoder, variant)
        most: object = sampling.max_tokens
        if room is None or not isinstance(most, int) or most <= room - tokens:
            return sampling
        self._is_tight = True
        return replace(sampling, max_tokens=room - tokens)


def stated_length(header: str | None) -> int | None:
    """Return the context length that a header states, or None."""
    return int(header) if header is not None and header.isascii() and header.isdigit() and len(header) < 10 else None
