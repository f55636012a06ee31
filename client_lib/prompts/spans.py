"""Spans: which parts of a prompt are private and which are public.

A prompt is a plain string, or a sequence of spans made by :func:`private` and :func:`public`. Every span is tokenised
on its own, so no token ever straddles a private and a public part. A plain string is private as a whole, except under
the variant ``clear``, which adds no noise and therefore takes public spans only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from client_lib._validation import invalid

__all__ = ["CLEAR", "Detector", "Prompt", "Span", "mark", "private", "public", "spans_of"]

#: The built-in variant without noise.
CLEAR = "clear"


@dataclass(frozen=True, slots=True, repr=False)
class Span:
    """A piece of a prompt. Its ``repr`` never shows the text, so a span may end up in a log without harm."""

    text: str = field(repr=False)
    is_private: bool

    def __repr__(self) -> str:
        return f"<{'private' if self.is_private else 'public'} span>"


Prompt: TypeAlias = str | Sequence[Span]
#: Finds what is private in a text: ranges of characters, from the first to behind the last.
Detector: TypeAlias = Callable[[str], Iterable[tuple[int, int]]]


def private(text: str) -> Span:
    """A span whose tokens leave this machine only as differentially private counts."""
    return Span(text, is_private=True)


def public(text: str) -> Span:
    """A span that is sent in the clear, as token ids. Use it for what is no secret: instructions, templates."""
    return Span(text, is_private=False)


def mark(text: str, detector: Detector) -> tuple[Span, ...]:
    """The text in spans, private where the detector says so and public elsewhere; together they are the text exactly.

    The detector is the caller's: it is given the text and yields ranges ``(start, end)`` of characters, in any order.
    Whatever it misses is sent in the clear. Raises :class:`InvalidRequest` for ranges that are empty, overlap or lie
    outside the text.
    """
    given: object = text
    if not isinstance(given, str):
        raise invalid("text", f"a {type(given).__name__}", "str")
    spans: list[Span] = []
    done = 0
    for start, end in sorted(_check_range(found, len(text)) for found in detector(text)):
        if start < done:
            raise invalid("detector", f"the range ({start}, {end}) begins before {done}", "ranges that do not overlap")
        spans += [public(text[done:start])] if start > done else []
        spans.append(private(text[start:end]))
        done = end
    spans += [public(text[done:])] if done < len(text) else []
    return tuple(spans)


def _check_range(found: object, length: int) -> tuple[int, int]:
    allowed = f"pairs (start, end) of integers with 0 <= start < end <= {length}"
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise invalid("detector", f"a {type(found).__name__} that is no pair", allowed)
    start, end = found
    if any(isinstance(place, bool) or not isinstance(place, int) for place in (start, end)):
        raise invalid("detector", "a range whose ends are no integers", allowed)
    if not 0 <= start < end <= length:
        raise invalid("detector", f"the range ({start}, {end})", allowed)
    return start, end


def spans_of(prompt: Prompt, variant: str) -> tuple[Span, ...]:
    """The spans of a prompt, checked. Empty spans are dropped; nothing else is changed.

    Raises :class:`InvalidRequest` for a prompt of the wrong type, an empty prompt, text that is not valid Unicode
    (lone surrogates), and a private span under the variant ``clear``. No message holds text of the prompt.
    """
    given: object = prompt
    if isinstance(given, str):
        spans: tuple[object, ...] = (Span(given, is_private=variant != CLEAR),)
    elif isinstance(given, Sequence) and not isinstance(given, bytes | bytearray | memoryview):
        spans = tuple(given)
    else:
        raise invalid("prompt", f"a {type(given).__name__}", "a str or a sequence of private(...) and public(...)")
    checked = tuple(
        _check(span, "prompt" if isinstance(given, str) else f"prompt[{index}]", variant)
        for index, span in enumerate(spans)
    )
    kept = tuple(span for span in checked if span.text)
    if not kept:
        raise invalid("prompt", "empty", "at least one character")
    return kept


def _check(span: object, name: str, variant: str) -> Span:
    if not isinstance(span, Span):
        raise invalid(name, f"a {type(span).__name__}", "private(...) or public(...)")
    text: object = span.text
    if not isinstance(text, str):
        raise invalid(name, f"text of type {type(text).__name__}", "str")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise invalid(name, "text with a lone surrogate", "valid Unicode")
    if span.is_private and variant == CLEAR:
        raise invalid(
            name, f"a private span with variant {CLEAR!r}, which adds no noise", "public spans, or another variant"
        )
    return span
