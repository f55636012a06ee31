"""Spans of a prompt as token ids, by the same rule in training, client and server.

Every span is tokenized on its own, so that no token holds text of two spans and no public token
depends on private text. Some tokenizers write a space in front of every text that they are given
("the doctor" becomes "▁the▁doctor"). Inside a prompt that would be a space which the prompt does
not have. The rule is therefore:

- A span that **begins a text** is tokenized as the file says: the first span of a prompt, and,
  where the tokenizer writes its space behind every added token (not only at the beginning), a span
  behind a public span that ends in an added token.
- Every other span **continues a text**: up to its first added token it is tokenized without the
  space in front, behind that token as the file says.

The choice never depends on a private span. docs/reference/bundle-format.md states the rule.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

from tokenizers import Tokenizer

_PROBE: Final = "a"
_BYTE_TOKEN: Final = re.compile("<0x([0-9A-F]{2})>")  # of tokenizers that fall back to bytes
# The characters of byte-level tokens: printable bytes stand for themselves (Radford et al., GPT-2).
_PRINTABLE: Final = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS: Final = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_LEVEL: Final = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + i): byte for i, byte in enumerate(_OTHERS)}


def load_tokenizer(tokenizer_json: bytes) -> Tokenizer:
    """Return the tokenizer of a ``tokenizer.json``, without its truncation and padding.

    The library raises plain Exception for a malformed file.
    """
    tokenizer = Tokenizer.from_buffer(tokenizer_json)
    # Batch settings of the file would silently truncate or pad prompts.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def begin_of_text_id(tokenizer: Tokenizer) -> int | None:
    """Return the token that the tokenizer itself puts in front of a text, or None.

    Only ``post_processor`` decides: a begin-of-text token that config.json names, but that the
    tokenizer does not write, is not part of a prompt.
    """
    bare = tokenizer.encode(_PROBE, add_special_tokens=False).ids
    ids = tokenizer.encode(_PROBE, add_special_tokens=True).ids
    for start in range(1, len(ids) - len(bare) + 1):
        if ids[start : start + len(bare)] == bare:
            return int(ids[start - 1]) if start == 1 else None
    return None


def special_token_id(tokenizer: Tokenizer, text: str) -> int | None:
    """Return the id of the special token that is written exactly ``text``, or None."""
    token_id = tokenizer.token_to_id(text)
    if token_id is None:
        return None
    added = tokenizer.get_added_tokens_decoder().get(token_id)
    return int(token_id) if added is not None and added.special else None


class SpanTokenizer:
    """Tokenizer of the spans of a prompt. Stateless and safe for several threads."""

    def __init__(self, tokenizer_json: bytes) -> None:
        """Read a ``tokenizer.json``; the library raises plain Exception if it is malformed."""
        self._beginning = load_tokenizer(tokenizer_json)
        self._continuing, self._everywhere = self._beginning, False
        # The state of a part is its JSON. The whole file, which may have megabytes, is parsed only
        # where it has to be changed.
        parts = {name: getattr(self._beginning, name) for name in ("normalizer", "pre_tokenizer")}
        changed = {name: json.loads(part.__getstate__()) for name, part in parts.items() if part is not None}
        prefixes = [prefix for name in tuple(changed) for prefix in _without_prefix(changed, name)]
        if prefixes:
            self._continuing = load_tokenizer(json.dumps({**json.loads(tokenizer_json), **changed}).encode())
            self._everywhere = any(prefixes)
        self._added = frozenset(self._beginning.get_added_tokens_decoder())
        decoder = self._beginning.decoder
        self._is_byte_level = decoder is not None and b'"ByteLevel"' in decoder.__getstate__()

    def token_bytes(self, token_id: int) -> bytes:
        """Return what a token stands for inside a text; some tokens are a part of a character.

        An id without a token stands for nothing.
        """
        name = self._beginning.id_to_token(token_id) or ""
        if token_id in self._added:
            return name.encode()
        if byte := _BYTE_TOKEN.fullmatch(name):
            return bytes([int(byte[1], 16)])
        if self._is_byte_level and _BYTE_LEVEL.keys() >= set(name):
            return bytes(_BYTE_LEVEL[character] for character in name)
        return name.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()

    def encode(self, text: str, *, begins: bool = True) -> tuple[int, ...]:
        """Return the ids of a text that begins a prompt, or of one that continues it."""
        if begins or self._continuing is self._beginning:
            return tuple(self._beginning.encode(text, add_special_tokens=False).ids)
        encoding = self._continuing.encode(text, add_special_tokens=False)
        ids = tuple(encoding.ids)
        if self._everywhere:
            for index, token_id in enumerate(ids):
                if token_id in self._added:
                    rest = text[encoding.offsets[index][1] :]
                    return ids[: index + 1] + self.encode(rest)
        return ids

    def encode_spans(
        self, spans: Iterable[tuple[str, bool]], begin_of_text: int | None = None
    ) -> list[tuple[int, ...]]:
        """Return the ids of each span ``(text, is_private)`` of a prompt, in order.

        If the token ``begin_of_text`` is sent in front of the prompt, a first span that is public
        and begins with it (a chat template may write it) loses that one.
        """
        found: list[tuple[int, ...]] = []
        begins = True
        for text, is_private in spans:
            ids = self.encode(text, begins=begins)
            is_sent = begin_of_text is not None and not found and not is_private and ids[:1] == (begin_of_text,)
            found.append(ids[1:] if is_sent else ids)
            if text:
                begins = self._begins_next(ids, is_private)
        return found

    def _begins_next(self, ids: Sequence[int], is_private: bool) -> bool:
        return self._everywhere and not is_private and bool(ids) and ids[-1] in self._added


def _without_prefix(file: dict[str, Any], name: str) -> list[bool]:
    """Take the space in front out of a normalizer or a pre-tokenizer, in place.

    Returns one entry for each part that writes such a space: whether it does so behind every added
    token, or at the beginning of the text only.
    """
    part = file.get(name)
    if not isinstance(part, dict):
        return []
    kind = part.get("type")
    if kind == "Sequence":
        inner = "normalizers" if name == "normalizer" else "pretokenizers"
        found: list[bool] = []
        kept = []
        for member in part.get(inner, []):
            holder = {name: member}
            found += _without_prefix(holder, name)
            if holder[name] is not None:
                kept.append(holder[name])
        part[inner] = kept
        return found
    if kind == "Prepend":
        file[name] = None
        return [True]
    if kind == "ByteLevel" and part.get("add_prefix_space"):
        part["add_prefix_space"] = False
        return [True]
    if kind == "Metaspace" and (scheme := _scheme(part)) != "never":
        part["prepend_scheme"] = "never"
        part.pop("add_prefix_space", None)
        return [scheme == "always"]
    return []


def _scheme(metaspace: dict[str, Any]) -> str:
    """Return when a Metaspace writes its space; older files say so with a boolean."""
    scheme = metaspace.get("prepend_scheme")
    if scheme is None:
        return "always" if metaspace.get("add_prefix_space", True) else "never"
    return str(scheme)
