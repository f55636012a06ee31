"""Reuse of the noisy counts of private spans across the turns of a conversation.

The k-th occurrence of a text in a prompt is named

    H(key; variant, padding, text, k),   H = BLAKE2b with a random key of 32 bytes,

and has a draw of its own. Occurrences of the same text carry independent noise, so the server
cannot see that they are equal. Sending a named span again repeats its counts bit for bit and
reveals nothing new. An entry holds no text.

Requests of a conversation carry a random session id for routing. The id links no more requests than
equal counts do: fresh noise for earlier text starts a new session, because two draws of one text
must not be linked.

A saved memory is ``b"DELM"``, a version byte (1), 12 bytes of nonce, and the AES-256-GCM ciphertext
with its tag (NIST SP 800-38D). The header is authenticated too. Nonces are random: after 2^32
savings under one key the probability of a repeated nonce reaches 2^-32 (section 8.3 there).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from client_lib._validation import invalid, missing_package, must_be
from client_lib.errors import BundleOutdatedError, MemoryInvalidError
from client_lib.prompts.answers import AnswerMemory
from client_lib.prompts.chat import Message
from client_lib.prompts.digest import DIGEST_BYTES, keyed_digest
from client_lib.prompts.spans import public
from client_lib.prompts.types import DrawnSegment, Tokenized
from del_core.net.fork import renewed_after_fork

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_SESSION_ID = re.compile(r"[0-9a-f]{32}")
_HEAD = b"DELM\x01"
_NONCE_BYTES = 12
_TAG_BYTES = 16
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class _Kept:
    """The counts of a span, and a digest of what they depend on (table, tokenizer, noise)."""

    segment: DrawnSegment = field(repr=False)
    origin: str


class SpanMemory:
    """The counts of one conversation. Safe to use from several threads."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(DIGEST_BYTES)
        self._answers = AnswerMemory(self._key)
        self._session = secrets.token_hex(16)
        self._kept: dict[bytes, _Kept] = {}
        # If two threads send the same span, the second one waits for the counts of the first.
        self._lock = threading.Lock()
        renewed_after_fork(self)

    def after_fork(self) -> None:
        """Replace the lock, which another thread of the parent may have held."""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def __repr__(self) -> str:
        return f"SpanMemory({len(self)} spans)"

    def counts(
        self,
        parts: Sequence[Tokenized],
        variant: str,
        origin: tuple[object, ...],
        quantize: Callable[[tuple[int, ...]], DrawnSegment],
        *,
        fresh: bool,
    ) -> tuple[list[DrawnSegment], str]:
        """Return the counts of private spans, recalled or drawn now, and the session id.

        ``fresh`` draws all counts anew and starts a session. If recalled counts mean something else
        under the bundle in use, ``BundleOutdatedError`` is raised before anything is drawn.
        """
        digest = hashlib.sha256(repr(origin).encode()).hexdigest()
        with self._lock:
            names = self._names(parts, variant)
            known = {} if fresh else {name: self._kept[name] for name in names if name in self._kept}
            if any(kept.origin != digest for kept in known.values()):
                raise BundleOutdatedError(
                    "spans of this conversation were encoded for another bundle; forget() or fresh=True "
                    "spends fresh noise on them",
                    meaning_changed=True,
                )
            if fresh:
                self._session = secrets.token_hex(16)
                # An answer in the clear would link the old counts with the new ones.
                self._answers = AnswerMemory(self._key)
            for name, part in zip(names, parts, strict=True):
                if name not in known:
                    known[name] = self._kept[name] = _Kept(quantize(part.ids), digest)
            return [known[name].segment for name in names], self._session

    def forget(self) -> None:
        """Drop all counts and start a session."""
        with self._lock:
            self._kept.clear()
            self._session = secrets.token_hex(16)
            self._key = secrets.token_bytes(DIGEST_BYTES)
            self._answers = AnswerMemory(self._key)

    def own_answers_public(self, messages: Sequence[Message], variant: str) -> list[Message]:
        """Return the messages with those that the server wrote as public text."""
        with self._lock:
            turns = self._answers.turns(None, variant, messages)
            own = [self._answers.own(turn, one) for turn, one in zip(turns, messages, strict=False)]
        return [
            one if text is None else Message(one.role, public(text)) for one, text in zip(messages, own, strict=True)
        ]

    def note_answer(self, messages: Sequence[Message], variant: str, text: str) -> None:
        """Note what the server wrote in answer to a chat."""
        with self._lock:
            self._answers.note(self._answers.turns(None, variant, messages)[-1], text)

    def _names(self, parts: Sequence[Tokenized], variant: str) -> list[bytes]:
        occurrences: Counter[str] = Counter()
        names = []
        for part in parts:
            text = part.span.text
            occurrences[text] += 1
            names.append(keyed_digest(self._key, variant, part.padding, text, str(occurrences[text])))
        return names

    def save(self, key: bytes) -> bytes:
        """Return all counts, encrypted and authenticated with the caller's key of 32 bytes."""
        with self._lock:
            content = {
                "key": _text(self._key),
                "session": self._session,
                "answers": [_text(name) for name in self._answers.noted],
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
        """Return the memory that :meth:`save` wrote. Raises as :func:`open_sealed`."""
        text = open_sealed(data, key)
        memory = cls()
        try:
            content = json.loads(text)
            memory._key = _bytes(content["key"])
            session = content.get("session", memory._session)  # absent in older memories
            if not _SESSION_ID.fullmatch(session):
                raise ValueError
            memory._session = session
            memory._answers = AnswerMemory(memory._key, [_bytes(name) for name in content.get("answers", [])])
            for span in content["spans"]:
                codes = np.frombuffer(_bytes(span["codes"]), dtype=np.uint8).reshape(span["shape"])
                segment = DrawnSegment(codes, _bytes(span["draw"]))
                memory._kept[_bytes(span["name"])] = _Kept(segment, str(span["origin"]))
        except (ValueError, KeyError, TypeError):
            pass
        else:
            return memory
        # Raised outside the handler: the parser's error carries the contents along.
        raise _memory_invalid("a saved conversation", "other contents")


@dataclass(frozen=True, slots=True)
class Recall:
    """The memory of a call; ``fresh`` ignores its counts and replaces them."""

    memory: SpanMemory
    fresh: bool = False


def seal(text: bytes, key: bytes) -> bytes:
    """Encrypt and authenticate with AES-256-GCM and a key of 32 bytes."""
    nonce = os.urandom(_NONCE_BYTES)
    return _HEAD + nonce + _cipher(key).encrypt(nonce, text, _HEAD)


def open_sealed(data: bytes, key: bytes) -> bytes:
    """Undo :func:`seal`. Raises ``MemoryInvalidError`` unless this key sealed exactly this data."""
    cipher = _cipher(key)
    from cryptography.exceptions import InvalidTag  # after the check that the package is installed

    start = len(_HEAD) + _NONCE_BYTES
    given: object = data
    if not isinstance(given, bytes) or data[:4] != _HEAD[:4] or len(data) < start + _TAG_BYTES:
        raise _memory_invalid("the bytes that save() returned", "something else")
    if data[: len(_HEAD)] != _HEAD:
        raise _memory_invalid("of format version 1", f"version {data[4]}")
    try:
        return cipher.decrypt(data[len(_HEAD) : start], data[start:], _HEAD)
    except InvalidTag:
        pass
    raise _memory_invalid("unaltered and opened with the key of save()", "altered bytes or another key")


def _cipher(key: bytes) -> AESGCM:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise missing_package("key", "used with the package cryptography", "memory") from None
    given: object = key
    if not isinstance(given, bytes) or len(given) != _KEY_BYTES:
        raise invalid("key", f"{_KEY_BYTES} bytes, for example secrets.token_bytes(32)", "something else")
    return AESGCM(key)


def _memory_invalid(wanted: str, found: str) -> MemoryInvalidError:
    return MemoryInvalidError(must_be("memory", wanted, found), field="memory")


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: Any) -> bytes:
    return base64.b64decode(text, validate=True)
