"""Spans: the private and the public parts of a prompt.

A prompt is a string, or a sequence of spans made by :func:`private` and :func:`public`. Every span
is tokenized on its own, so no token contains both private and public text. A string is private as a
whole, except under the variant ``clear``, which adds no noise and accepts public spans only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from client_lib._validation import has_surrogate, invalid

#: The built-in variant without noise.
CLEAR = "clear"

MAX_PROMPT_CHARACTERS = 1 << 20
"""Longest prompt: eight characters for each of the 131,072 tokens that a frame may hold."""


@dataclass(frozen=True, slots=True, repr=False)
class Span:
    """A part of a prompt. Its ``repr`` omits the text, so that spans may be logged."""

    text: str = field(repr=False)
    is_private: bool

    def __repr__(self) -> str:
        return f"<{'private' if self.is_private else 'public'} span>"


Prompt: TypeAlias = str | Sequence[Span]
#: Finds the private parts of a text: ranges ``(start, end)`` of characters, ``end`` excluded.
Detector: TypeAlias = Callable[[str], Iterable[tuple[int, int]]]


def private(text: str) -> Span:
    """Return a span whose tokens are sent only as differentially private counts."""
    return Span(text, is_private=True)


def public(text: str) -> Span:
    """Return a span that is sent in the clear, as token ids: instructions, templates."""
    return Span(text, is_private=False)


def mark(text: str, detector: Detector) -> tuple[Span, ...]:
    """Split a text into spans: private where the detector finds something, public elsewhere.

    **Whatever the caller's detector misses is sent in the clear.** Ranges may come in any order.
    Raises ``InvalidRequestError`` for ranges that are empty, overlap, or lie outside the text.
    """
    given: object = text
    if not isinstance(given, str):
        raise invalid("text", "a str", f"a {type(given).__name__}")
    spans: list[Span] = []
    done = 0
    for start, end in sorted(_check_range(found, len(text)) for found in detector(text)):
        if start < done:
            raise invalid("detector", "a source of ranges that do not overlap", f"({start}, {end}) after {done}")
        spans += [public(text[done:start])] if start > done else []
        spans.append(private(text[start:end]))
        done = end
    spans += [public(text[done:])] if done < len(text) else []
    return tuple(spans)


def _check_range(found: object, length: int) -> tuple[int, int]:
    wanted = f"a source of integer pairs (start, end) with 0 <= start < end <= {length}"
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise invalid("detector", wanted, f"a {type(found).__name__} that is no pair")
    start, end = found
    if any(isinstance(place, bool) or not isinstance(place, int) for place in (start, end)):
        raise invalid("detector", wanted, "a pair that is not of integers")
    if not 0 <= start < end <= length:
        raise invalid("detector", wanted, f"({start}, {end})")
    return start, end


def spans_of(prompt: Prompt, variant: str) -> tuple[Span, ...]:
    """Return the checked spans of a prompt, without empty ones.

    Raises ``InvalidRequestError``, whose message contains no text of the prompt.
    """
    given: object = prompt
    if isinstance(given, str):
        spans: tuple[object, ...] = (Span(given, is_private=variant != CLEAR),)
    elif isinstance(given, Sequence) and not isinstance(given, bytes | bytearray | memoryview):
        spans = tuple(given)
    else:
        raise invalid("prompt", "a str or a sequence of private(...) and public(...)", f"a {type(given).__name__}")
    checked = tuple(
        _check(span, "prompt" if isinstance(given, str) else f"prompt[{index}]", variant)
        for index, span in enumerate(spans)
    )
    length = sum(len(span.text) for span in checked)
    if length > MAX_PROMPT_CHARACTERS:
        raise invalid("prompt", f"at most {MAX_PROMPT_CHARACTERS} characters long", f"{length} characters")
    kept = tuple(span for span in checked if span.text)
    if not kept:
        raise invalid("prompt", "at least one character", "an empty prompt")
    return kept


def _check(span: object, name: str, variant: str) -> Span:
    if not isinstance(span, Span):
        raise invalid(name, "private(...) or public(...)", f"a {type(span).__name__}")
    text: object = span.text
    if not isinstance(text, str):
        raise invalid(name, "a span of str", f"text of type {type(text).__name__}")
    if has_surrogate(text):
        raise invalid(name, "valid Unicode", "text with a lone surrogate")
    if span.is_private and variant == CLEAR:
        raise invalid(name, f"public under the variant {CLEAR!r}, which adds no noise", "a private span")
    return span
