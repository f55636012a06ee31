"""The counts that were sent before, found again by how a prompt begins.

A prompt is a list of spans. Its prefixes are named by a chain of keyed digests,

    h_0 = H(key; subject, variant),   h_i = H(key; h_(i-1), span i),

so that two prompts of one subject and variant share names exactly as far as they are equal, and h_i names what span i
became when it stood behind just these spans. The key is random and lives as long as the memory: no text is kept, and
the digests do not tell whether a guessed text was there.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from client_lib.prompts.encoder import EncodedPrompt
from client_lib.prompts.spans import Span
from del_core.wire import PrivateSegment

__all__ = ["CountMemory"]

# What an entry takes besides its counts: digest, objects and their places in the table, in bytes, about.
_OVERHEAD = 600


class CountMemory:
    """Encoded spans by the names of prefixes, at most ``max_bytes`` of them; the longest unused are dropped first.

    For the tasks of one event loop; not for several threads.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._key = secrets.token_bytes(32)
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._bytes = 0

    @property
    def used_bytes(self) -> int:
        """How many bytes are in use, about."""
        return self._bytes

    def names(self, subject: str | None, variant: str, spans: Iterable[Span]) -> list[bytes]:
        """The names of all prefixes, the empty one first."""
        # None and "" are two subjects.
        names = [self._digest(b"", "none" if subject is None else "some", subject or "", variant)]
        for span in spans:
            names.append(self._digest(names[-1], "private" if span.is_private else "public", span.text))
        return names

    def _digest(self, before: bytes, *fields: str) -> bytes:
        digest = hashlib.blake2b(before, key=self._key, digest_size=32)
        for text in fields:
            data = text.encode("utf-8")
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.digest()

    def recall(self, names: Sequence[bytes]) -> list[EncodedPrompt]:
        """The encoded spans from the first on, as far as they are known."""
        found: list[EncodedPrompt] = []
        for name in names[1:]:
            kept = self._kept.get(name)
            if kept is None:
                break
            found.append(kept.encoded)
        # The first spans last: without them what stands behind is not found any more.
        for name in reversed(names[1 : len(found) + 1]):
            self._kept.move_to_end(name)
        return found

    def remember(self, name: bytes, encoded: EncodedPrompt) -> None:
        """Keep what a span became, and drop other spans if there is no room."""
        self.forget([name])
        kept = _Kept(encoded)
        if kept.size > self._max_bytes:
            return
        self._kept[name] = kept
        self._bytes += kept.size
        while self._bytes > self._max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.size

    def forget(self, names: Iterable[bytes]) -> None:
        """Drop what the names stand for."""
        for name in names:
            if (kept := self._kept.pop(name, None)) is not None:
                self._bytes -= kept.size


@dataclass(frozen=True, slots=True)
class _Kept:
    encoded: EncodedPrompt = field(repr=False)

    @property
    def size(self) -> int:
        segments = self.encoded.segments
        counts = sum(segment.codes.nbytes for segment in segments if isinstance(segment, PrivateSegment))
        return _OVERHEAD + counts + 32 * sum(segment.tokens for segment in segments)
