"""Length padding: private spans are filled up to a bucket, which hides their exact length."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Literal

from client_lib._validation import check_integer, invalid, must_be
from client_lib.errors import BundleInvalidError


@dataclass(frozen=True, slots=True)
class Padding:
    """Pads the beginning of every private span to a multiple of ``bucket`` tokens.

    Padding tokens are quantized, sent and charged as private tokens. The number of private spans
    and of buckets stays visible, and noise too weak to protect the tokens does not protect the
    padding either.

    With ``fill="repeat"`` the tokens of ``text`` are repeated; choose text that the model ignores.
    With ``fill="draw"`` each padding token is drawn from those of ``text``, independently and as
    often as it occurs there, by the operating system's generator. Give text like your prompts, the
    longer the better: the server then finds the end of the padding less often
    (docs/privacy/length.md).

    With ``unit="bytes"`` a span gets as many tokens as its text has bytes in UTF-8, rounded up to
    the bucket. The length then says nothing about how the server's tokenizer cuts the text, at
    about four times the tokens. A tokenizer that makes more tokens than bytes is refused.
    """

    bucket: int
    text: str = field(default="\n", repr=False)
    unit: Literal["tokens", "bytes"] = "tokens"
    fill: Literal["repeat", "draw"] = "repeat"

    def __post_init__(self) -> None:
        check_integer("padding.bucket", self.bucket, 2, 4096)
        text: object = self.text
        if not isinstance(text, str) or not text:
            raise invalid("padding.text", "at least one character", "an empty text or no string")
        if self.unit not in ("tokens", "bytes"):
            raise invalid("padding.unit", "'tokens' or 'bytes'", repr(self.unit))
        if self.fill not in ("repeat", "draw"):
            raise invalid("padding.fill", "'repeat' or 'draw'", repr(self.fill))

    @property
    def name(self) -> str:
        """A text that identifies these settings."""
        unit = "" if self.unit == "tokens" else f"{self.unit} "
        fill = "" if self.fill == "repeat" else f"{self.fill} "
        return f"{unit}{fill}{self.bucket} {self.text}"

    def apply(self, ids: tuple[int, ...], padding_ids: tuple[int, ...], size: int) -> tuple[int, ...]:
        """Return the ids of a text of ``size`` bytes behind their padding, the tokens of ``text``.

        Raises ``BundleInvalidError`` if a tokenizer makes more tokens than bytes, in that unit.
        """
        if not padding_ids:
            raise invalid("padding.text", "text with at least one token", "text without tokens")
        least = len(ids) if self.unit == "tokens" else size
        missing = least + -least % self.bucket - len(ids)
        if missing < 0:  # said without figures, which would depend on the text
            wanted = "a tokenizer that makes at most one token of each byte"
            raise BundleInvalidError(must_be("tokenizer.json", wanted, "more tokens"))
        if self.fill == "draw":
            return tuple(padding_ids[secrets.randbelow(len(padding_ids))] for _ in range(missing)) + ids
        repeated = padding_ids * (missing // len(padding_ids) + 1)
        return repeated[:missing] + ids
