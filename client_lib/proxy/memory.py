"""Reuse of noisy counts by how a prompt begins.

A prompt is a list of spans. Its prefixes are named by a chain of keyed digests,

    h_0 = H(key; subject, variant),   h_i = H(key; h_(i-1), span i),

so two prompts of one subject and variant share names exactly as far as they are equal. The key is
random: no text is kept, and a digest does not reveal whether a guessed text occurred.
docs/design/adr-0006-two-conversation-memories.md explains why conversations use another memory.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from client_lib.prompts.chat import Message
from client_lib.prompts.memo import encoded_size
from client_lib.prompts.span_memory import keyed_digest
from client_lib.prompts.spans import Span
from client_lib.prompts.types import EncodedPrompt

_HISTORIES = 20_000  # names whose drawings are counted, and answers that are noted


class CountMemory:
    """Encoded spans by prefix name, least recently used ones dropped beyond ``max_bytes``.

    For the tasks of one event loop, not for several threads.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._key = secrets.token_bytes(32)
        self._kept: OrderedDict[bytes, EncodedPrompt] = OrderedDict()
        self._bytes = 0
        self._answers: OrderedDict[bytes, None] = OrderedDict()
        self._drawn: OrderedDict[bytes, tuple[object, int]] = OrderedDict()

    def names(self, subject: str | None, variant: str, spans: Iterable[Span]) -> list[bytes]:
        """Return the names of all prefixes, the empty one first."""
        # None and "" are two subjects.
        names = [keyed_digest(self._key, "none" if subject is None else "some", subject or "", variant)]
        for span in spans:
            names.append(keyed_digest(self._key, _kind(span), span.text, before=names[-1]))
        return names

    def shortened(self, spans: Sequence[Span], names: Sequence[bytes], kept: Sequence[Span]) -> list[bytes]:
        """Return names for a prompt of which spans were left out.

        ``names`` are those of all ``spans``. What ``kept`` has in common with them at the beginning
        and at the end keeps its names, and so its counts.
        """
        start = 0
        while start < len(kept) and kept[start] == spans[start]:
            start += 1
        end = 0
        while end < len(kept) - start and kept[-1 - end] == spans[-1 - end]:
            end += 1
        made = list(names[: start + 1])
        for span in kept[start : len(kept) - end]:
            made.append(keyed_digest(self._key, "shortened", _kind(span), span.text, before=made[-1]))
        return made + list(names[len(names) - end :])

    def recall(self, names: Sequence[bytes], spans: Sequence[Span]) -> list[EncodedPrompt | None]:
        """Return the encoded spans that are known; none behind a private one that is not.

        So no two drawings of a span are sent beside the same counts, which would link them.
        """
        found: list[EncodedPrompt | None] = [None] * len(spans)
        for index, (name, span) in enumerate(zip(names[1:], spans, strict=True)):
            found[index] = self._kept.get(name)
            if found[index] is None and span.is_private:
                break
        # The first spans become the most recent: later ones are found only through them.
        for name, known in reversed(list(zip(names[1:], found, strict=True))):
            if known is not None:
                self._kept.move_to_end(name)
        return found

    def remember(self, name: bytes, encoded: EncodedPrompt) -> None:
        """Keep an encoded span, and drop other spans if there is no room."""
        self.forget([name])
        if encoded_size(encoded) > self._max_bytes:
            return
        self._kept[name] = encoded
        self._bytes += encoded_size(encoded)
        while self._bytes > self._max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= encoded_size(dropped)

    def count_redraws(self, name: bytes, encoded: EncodedPrompt) -> int:
        """Note a drawing; return how often counts of this name changed their meaning so far."""
        origin, redraws = self._drawn.pop(name, (encoded.origin, 0))
        redraws += origin != encoded.origin
        self._drawn[name] = (encoded.origin, redraws)
        if len(self._drawn) > _HISTORIES:
            self._drawn.popitem(last=False)
        return redraws

    def turns(self, subject: str | None, variant: str, messages: Iterable[Message]) -> list[bytes]:
        """Return the names of a chat before each of its messages and at its end."""
        names = [keyed_digest(self._key, "chat", "none" if subject is None else "some", subject or "", variant)]
        for message in messages:
            names.append(keyed_digest(self._key, message.role, str(message.content), before=names[-1]))
        return names

    def note_answer(self, turn: bytes, text: str) -> None:
        """Note that the server wrote ``text`` as the answer to the chat of this name."""
        if self._max_bytes == 0:
            return
        self._answers[keyed_digest(self._key, "answer", text.strip(), before=turn)] = None
        if len(self._answers) > _HISTORIES:
            self._answers.popitem(last=False)

    def is_answer(self, turn: bytes, text: str) -> bool:
        """Return whether the server wrote ``text``, white space at its ends aside, at this turn."""
        name = keyed_digest(self._key, "answer", text.strip(), before=turn)
        if name not in self._answers:
            return False
        self._answers.move_to_end(name)
        return True

    def forget(self, names: Iterable[bytes]) -> None:
        """Drop the encoded spans of these names."""
        for name in names:
            if (kept := self._kept.pop(name, None)) is not None:
                self._bytes -= encoded_size(kept)


def _kind(span: Span) -> str:
    return "private" if span.is_private else "public"
