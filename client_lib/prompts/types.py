"""Prompts on their way to the server: tokenized spans, drawn segments, encoded prompts."""

from __future__ import annotations

from dataclasses import dataclass, field

from client_lib.prompts.spans import Span
from del_core.wire import PrivateSegment, Segment


@dataclass(frozen=True, slots=True)
class Draw:
    """One drawing of noise: the counts of one private segment of ``tokens`` tokens.

    ``id`` is 16 random bytes, independent of the counts. Whatever sends the same counts again
    carries the same id, so that a ledger charges them once.
    """

    id: bytes = field(repr=False)
    tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class DrawnSegment(PrivateSegment):
    """The counts of a private span, and the id of their draw, which is never sent."""

    draw_id: bytes = field(repr=False)

    @property
    def draw(self) -> Draw:
        """The draw that these counts came from."""
        return Draw(self.draw_id, self.tokens)


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A span as token ids, before any noise is drawn; ``padding`` identifies its padding."""

    span: Span
    ids: tuple[int, ...] = field(repr=False)
    padding: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, repr=False)
class EncodedPrompt:
    """A prompt whose noise is drawn: sending it twice reveals no more than sending it once.

    ``fingerprint`` and ``variant`` name the bundle and the variant of the encoding. ``origin``
    identifies everything that the segments depend on (tokenizer, table, noise): they stay valid
    under another bundle with the same origin. ``session`` is the random id of the conversation.
    ``end_token_ids`` are the tokens that end the answer, if the prompt is a chat.
    """

    fingerprint: str
    variant: str
    segments: tuple[Segment, ...] = field(repr=False)
    origin: tuple[object, ...] = field(repr=False)
    session: str | None = field(default=None, repr=False)
    end_token_ids: tuple[int, ...] = ()

    @property
    def private_tokens(self) -> int:
        """The number of tokens sent as counts; the privacy loss composes over these."""
        return sum(segment.tokens for segment in self.segments if isinstance(segment, PrivateSegment))

    @property
    def draws(self) -> tuple[Draw, ...]:
        """The draws of the private segments, in order; sending them again costs no privacy."""
        return tuple(segment.draw for segment in self.segments if isinstance(segment, DrawnSegment))

    @property
    def tokens(self) -> int:
        """The number of tokens of the prompt."""
        return sum(segment.tokens for segment in self.segments)

    def __repr__(self) -> str:
        return f"EncodedPrompt(fingerprint={self.fingerprint!r}, variant={self.variant!r})"
