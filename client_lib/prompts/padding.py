"""Length padding: private spans are filled up to a bucket, which hides their exact length."""

from __future__ import annotations

from dataclasses import dataclass, field

from client_lib._validation import check_integer, invalid


@dataclass(frozen=True, slots=True)
class Padding:
    """Pads the beginning of every private span to a multiple of ``bucket`` tokens.

    Padding tokens are quantized, sent and charged as private tokens. The number of private spans
    and of buckets stays visible, and noise too weak to protect the tokens does not protect the
    padding either. The tokens of ``text`` are repeated; choose text that the model ignores.
    """

    bucket: int
    text: str = field(default="\n", repr=False)

    def __post_init__(self) -> None:
        check_integer("padding.bucket", self.bucket, 2, 4096)
        text: object = self.text
        if not isinstance(text, str) or not text:
            raise invalid("padding.text", "at least one character", "an empty text or no string")

    @property
    def name(self) -> str:
        """A text that identifies these settings."""
        return f"{self.bucket} {self.text}"

    def apply(self, ids: tuple[int, ...], padding_ids: tuple[int, ...]) -> tuple[int, ...]:
        """Return the ids behind their padding; ``padding_ids`` are the tokens of ``text``."""
        if not padding_ids:
            raise invalid("padding.text", "text with at least one token", "text without tokens")
        missing = -len(ids) % self.bucket
        repeated = padding_ids * (missing // len(padding_ids) + 1)
        return repeated[:missing] + ids
