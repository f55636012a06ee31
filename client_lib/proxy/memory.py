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
from client_lib.prompts.digest import keyed_digest
from client_lib.prompts.memo import EncodedStore
from client_lib.prompts.spans import Span
from client_lib.prompts.types import EncodedPrompt
from client_lib.proxy.history import spans_in

_HISTORIES = 20_000  # names whose drawings are counted


class CountMemory:
    """Encoded spans by prefix name, least recently used ones dropped beyond ``max_bytes``.

    For the tasks of one event loop, not for several threads.
    """

    def __init__(self, max_bytes: int) -> None:
        self._key = secrets.token_bytes(32)
        self._store = EncodedStore(max_bytes)
        self._drawn: OrderedDict[bytes, tuple[object, int]] = OrderedDict()

    def names(self, subject: str | None, variant: str, spans: Iterable[Span]) -> list[bytes]:
        """Return the names of all prefixes, the empty one first."""
        # None and "" are two subjects.
        names = [keyed_digest(self._key, "none" if subject is None else "some", subject or "", variant)]
        for span in spans:
            names.append(keyed_digest(self._key, _kind(span), span.text, before=names[-1]))
        return names

    def chat_names(
        self, subject: str | None, variant: str, chat: Sequence[Message], spans: Sequence[Span]
    ) -> list[bytes]:
        """Return names for the ``spans`` of ``chat``, or of a part of it, the empty prefix first.

        A private message is named by the messages up to it, whatever a template writes around them
        and in which order: a template comes from the server, which must not get a second copy of a
        message by changing what stands in front of it.
        """
        start = keyed_digest(self._key, "chat", "none" if subject is None else "some", subject or "", variant)
        named, name = {}, start
        for message in chat:
            for span in spans_in(message):
                name = keyed_digest(self._key, message.role, span.text, before=name)
                named[id(span)] = name
        names = self.names(subject, variant, spans)
        for index, span in enumerate(spans):
            if span.is_private:
                # The definitions of tools belong to no message.
                known = named.get(id(span)) or keyed_digest(self._key, "tools", span.text, before=start)
                # A begin-of-text token belongs to the first span.
                first = ("first",) if index == 0 else ()
                names[index + 1] = keyed_digest(self._key, "message", *first, before=known)
        return names

    def recall(
        self, names: Sequence[bytes], spans: Sequence[Span], order: Sequence[int] | None = None
    ) -> list[EncodedPrompt | None]:
        """Return the encoded spans that are known; none behind a private one that is not.

        So no two drawings of a span are sent beside the same counts, which would link them.
        ``order`` are the indices of the spans as they were written, if they are sent in another
        order.
        """
        found: list[EncodedPrompt | None] = [None] * len(spans)
        for index in range(len(spans)) if order is None else order:
            kept = self._store.get(names[index + 1])
            if kept is not None:
                found[index] = kept.encoded
            elif spans[index].is_private:
                break
        # The first spans become the most recent: later ones are found only through them.
        for name, known in reversed(list(zip(names[1:], found, strict=True))):
            if known is not None:
                self._store.get(name)
        return found

    def remember(self, name: bytes, encoded: EncodedPrompt) -> None:
        """Keep an encoded span, and drop other spans if there is no room."""
        self._store.put(name, encoded)

    def count_redraws(self, name: bytes, encoded: EncodedPrompt) -> int:
        """Note a drawing; return how often counts of this name changed their meaning so far."""
        origin, redraws = self._drawn.pop(name, (encoded.origin, 0))
        redraws += origin != encoded.origin
        self._drawn[name] = (encoded.origin, redraws)
        if len(self._drawn) > _HISTORIES:
            self._drawn.popitem(last=False)
        return redraws

    def forget(self, names: Iterable[bytes]) -> None:
        """Drop the encoded spans of these names."""
        for name in names:
            self._store.drop(name)


def _kind(span: Span) -> str:
    return "private" if span.is_private else "public"
