"""What the private spans of a conversation became: every one quantised once, its counts sent again ever after.

The k-th occurrence of a text in a prompt is a span of its own, named

    H(key; variant, padding, text, k),   H = BLAKE2b with 32 random bytes as the key,

and has a draw of its own: two places with the same text carry independent noise, so that the server cannot see that
they are equal. Sending a named span again repeats its counts bit for bit, which tells the server nothing that it does
not have already. No text is kept: an entry is the digest, the counts and the identity of their draw.

A conversation has a session id, which its requests carry so that a router can send them to the replica that has their
beginning in its cache. It is random, and goes as far as the server could link requests by their equal counts anyway:
with fresh noise for what was said before there is a new one, since two draws of one text must not be shown to be such.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from client_lib._core.fork import renewed_after_fork
from client_lib.errors import BundleOutdated, MemoryInvalid
from client_lib.prompts.encoder import DrawnSegment, Tokenised
from client_lib.prompts.seal import open_sealed, seal

__all__ = ["Recall", "SpanMemory"]

_DIGEST_BYTES = 32
_SESSION_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class _Kept:
    """The counts of a span, and a digest of what they depend on (table, tokenizer, noise)."""

    segment: DrawnSegment = field(repr=False)
    origin: str


class SpanMemory:
    """The counts of one conversation; safe to use from several threads."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(_DIGEST_BYTES)
        self._session = _new_session()
        self._kept: dict[bytes, _Kept] = {}
        # Of two equal spans at the same time the second waits for the first one's counts.
        self._lock = threading.Lock()
        renewed_after_fork(self)

    def after_fork(self) -> None:
        """Another thread of the parent may have held the lock; what is kept is whole all the same."""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def __repr__(self) -> str:
        return f"SpanMemory({len(self)} spans)"

    def counts(
        self,
        parts: Sequence[Tokenised],
        variant: str,
        origin: tuple[object, ...],
        quantise: Callable[[tuple[int, ...]], DrawnSegment],
        *,
        fresh: bool,
    ) -> tuple[list[DrawnSegment], str]:
        """The counts of private spans: those of before, or drawn now and kept; and the session id.

        ``fresh`` draws all of them anew and begins a session. Raises :class:`BundleOutdated` if counts of before mean
        something else under the bundle in use; nothing has been drawn or changed then.
        """
        digest = hashlib.sha256(repr(origin).encode()).hexdigest()
        with self._lock:
            names = self._names(parts, variant)
            known = {} if fresh else {name: self._kept[name] for name in names if name in self._kept}
            if any(kept.origin != digest for kept in known.values()):
                raise BundleOutdated(
                    "prompt: spans of this conversation were encoded for another bundle, and their counts mean "
                    "something else now; allowed: forget() or fresh=True, which spends fresh noise on them"
                )
            if fresh:
                self._session = _new_session()
            for name, part in zip(names, parts, strict=True):
                if name not in known:
                    known[name] = self._kept[name] = _Kept(quantise(part.ids), digest)
            return [known[name].segment for name in names], self._session

    def forget(self) -> None:
        """Drop all counts, and begin a session."""
        with self._lock:
            self._kept.clear()
            self._session = _new_session()
            self._key = secrets.token_bytes(_DIGEST_BYTES)

    def _names(self, parts: Sequence[Tokenised], variant: str) -> list[bytes]:
        seen: Counter[str] = Counter()
        names = []
        for part in parts:
            seen[part.span.text] += 1
            digest = hashlib.blake2b(key=self._key, digest_size=_DIGEST_BYTES)
            for value in (variant, part.padding, part.span.text, str(seen[part.span.text])):
                data = value.encode("utf-8")
                digest.update(len(data).to_bytes(8, "little") + data)
            names.append(digest.digest())
        return names

    # --- at rest ------------------------------------------------------------------------------------------------------

    def save(self, key: bytes) -> bytes:
        """All counts, encrypted and authenticated with the caller's 32 bytes of key."""
        with self._lock:
            content = {
                "key": _text(self._key),
                "session": self._session,
                "spans": [
                    {
                        "name": _text(name),
                        "origin": kept.origin,
                        "draw": _text(kept.segment.draw_id),
                        "shape": list(kept.segment.codes.shape),
                        "codes": _text(kept.segment.codes.tobytes()),
                    }
                    for name, kept in self._kept.items()
                ],
            }
        return seal(json.dumps(content).encode("ascii"), key)

    @classmethod
    def load(cls, data: bytes, key: bytes) -> SpanMemory:
        """The memory that :meth:`save` wrote. Raises :class:`MemoryInvalid` for a wrong key or altered bytes."""
        text = open_sealed(data, key)
        memory = cls()
        try:
            content = json.loads(text)
            memory._key = _bytes(content["key"])
            session = content.get("session", memory._session)  # what older versions wrote has none
            if not _SESSION_ID.fullmatch(session):
                raise ValueError
            memory._session = session
            for span in content["spans"]:
                codes = np.frombuffer(_bytes(span["codes"]), dtype=np.uint8).reshape(span["shape"])
                memory._kept[_bytes(span["name"])] = _Kept(
                    DrawnSegment(codes, _bytes(span["draw"])), str(span["origin"])
                )
        except (ValueError, KeyError, TypeError):
            pass
        else:
            return memory
        raise MemoryInvalid("memory: sealed with this key, but no conversation; allowed: what save() returned")


@dataclass(frozen=True, slots=True)
class Recall:
    """How a call uses a memory."""

    memory: SpanMemory
    fresh: bool = False


def _new_session() -> str:
    return secrets.token_hex(16)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: Any) -> bytes:
    return base64.b64decode(text, validate=True)
