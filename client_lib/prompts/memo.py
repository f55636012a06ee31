"""The memo of a client: the counts of the prompts that it sent, for prompts that are sent again.

An application's own retry loop would otherwise send one prompt under several drawings of noise,
which the server could average (docs/design/adr-0015-memo-of-counts.md). A prompt is named

    H(key; subject, variant, padding, spans),   H = BLAKE2b with a random key of 32 bytes,

so the memo holds no text, and a digest does not reveal whether a guessed text occurred.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from client_lib.errors import BundleOutdatedError
from client_lib.prompts.digest import keyed_digest
from client_lib.prompts.padding import Padding
from client_lib.prompts.spans import Span
from client_lib.prompts.types import EncodedPrompt
from del_core.net.fork import renewed_after_fork
from del_core.wire import PrivateSegment

MAX_REDRAWS = 2
"""How often one prompt may get fresh noise because the meaning of its counts changed."""

MEMO_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Kept:
    """An entry of a store."""

    encoded: EncodedPrompt = field(repr=False)
    redraws: int = 0


class EncodedStore:
    """Encoded prompts by name, least recently used ones dropped beyond ``max_bytes``.

    ``redraws`` of an entry says how often its counts were replaced. For one thread at a time.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        self.used_bytes: int = 0
        """The approximate number of bytes in use."""

    def get(self, name: bytes) -> Kept | None:
        """Return an entry, which becomes the most recent one, or None."""
        kept = self._kept.get(name)
        if kept is not None:
            self._kept.move_to_end(name)
        return kept

    def put(self, name: bytes, encoded: EncodedPrompt, redraws: int = 0) -> None:
        """Keep a prompt, unless it is larger than the store."""
        self.drop(name)
        if encoded_size(encoded) > self._max_bytes:
            return
        self._kept[name] = Kept(encoded, redraws)
        self.used_bytes += encoded_size(encoded)
        while self.used_bytes > self._max_bytes:
            self.drop(next(iter(self._kept)))

    def drop(self, name: bytes) -> None:
        """Drop an entry, if there is one."""
        if (kept := self._kept.pop(name, None)) is not None:
            self.used_bytes -= encoded_size(kept.encoded)


class PromptMemo:
    """Encoded prompts by name, the least recently used ones dropped. Safe for several threads."""

    def __init__(self, max_bytes: int = MEMO_BYTES) -> None:
        self._key = secrets.token_bytes(32)
        self._store = EncodedStore(max_bytes)
        self._lock = threading.Lock()
        renewed_after_fork(self)

    def after_fork(self) -> None:
        """Replace the lock, which another thread of the parent may have held."""
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        """The approximate number of bytes in use."""
        return self._store.used_bytes

    def name(self, subject: str | None, variant: str, padding: Padding | None, spans: Sequence[Span]) -> bytes:
        """Return the name of a prompt."""
        parts = [part for span in spans for part in ("private" if span.is_private else "public", span.text)]
        # None and "" are two subjects.
        whose = ("none", "") if subject is None else ("some", subject)
        return keyed_digest(self._key, *whose, variant, "" if padding is None else padding.name, *parts)

    def recall(self, name: bytes) -> EncodedPrompt | None:
        """Return the prompt of this name as it was sent last, or None."""
        with self._lock:
            kept = self._store.get(name)
            return None if kept is None else kept.encoded

    def keep(self, name: bytes, encoded: EncodedPrompt, *, fresh: bool = False) -> EncodedPrompt:
        """Keep a drawn prompt, and return the one to send.

        If another thread was faster, its counts are sent, unless ``fresh`` asks for new ones.
        Counts that mean something else by now are replaced at most :data:`MAX_REDRAWS` times; then
        ``BundleOutdatedError`` is raised.
        """
        with self._lock:
            kept = self._store.get(name)
            redraws = 0
            if kept is not None and not fresh:
                if kept.encoded.origin == encoded.origin:
                    return kept.encoded
                redraws = kept.redraws + 1
                check_redraws(redraws, "fresh=True")
            self._store.put(name, encoded, redraws)
        return encoded


def check_redraws(redraws: int, permission: str) -> None:
    """Raise ``BundleOutdatedError`` if one prompt was drawn again too often."""
    if redraws > MAX_REDRAWS:
        raise BundleOutdatedError(
            f"prompt: the server changed its bundle {redraws} times since it was first sent, and the limit of fresh "
            f"noise for it is {MAX_REDRAWS}; several noisy copies reveal more than one. {permission} draws another"
        )


def encoded_size(encoded: EncodedPrompt) -> int:
    """Return the approximate size of an encoded prompt in bytes."""
    counts = sum(segment.codes.nbytes for segment in encoded.segments if isinstance(segment, PrivateSegment))
    return 600 + counts + 32 * encoded.tokens
