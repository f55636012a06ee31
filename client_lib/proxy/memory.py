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

from client_lib.prompts.memo import encoded_size
from client_lib.prompts.span_memory import keyed_digest
from client_lib.prompts.spans import Span
from client_lib.prompts.types import EncodedPrompt

_HISTORIES = 20_000  # names whose drawings are counted


class CountMemory:
    """Encoded spans by prefix name, least recently used ones dropped beyond ``max_bytes``.

    For the tasks of one event loop, not for several threads.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._key = secrets.token_bytes(32)
        self._kept: OrderedDict[bytes, EncodedPrompt] = OrderedDict()
        self._bytes = 0
        self._drawn: OrderedDict[bytes, tuple[object, int]] = OrderedDict()

    def names(self, subject: str | None, variant: str, spans: Iterable[Span]) -> list[bytes]:
        """Return the names of all prefixes, the empty one first."""
        # None and "" are two subjects.
        names = [keyed_digest(self._key, "none" if subject is None else "some", subject or "", variant)]
        for span in spans:
            kind = "private" if span.is_private else "public"
            names.append(keyed_digest(self._key, kind, span.text, before=names[-1]))
        return names

    def recall(self, names: Sequence[bytes]) -> list[EncodedPrompt]:
        """Return the known encoded spans, from the first up to the first unknown one."""
        found: list[EncodedPrompt] = []
        for name in names[1:]:
            kept = self._kept.get(name)
            if kept is None:
                break
            found.append(kept)
        # The first spans become the most recent: later ones are found only through them.
        for name in reversed(names[1 : len(found) + 1]):
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

    def forget(self, names: Iterable[bytes]) -> None:
        """Drop the encoded spans of these names."""
        for name in names:
            if (kept := self._kept.pop(name, None)) is not None:
                self._bytes -= encoded_size(kept)
