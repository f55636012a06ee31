"""Length padding: private spans filled up to a multiple of a bucket, which hides their exact length."""

from __future__ import annotations

from dataclasses import dataclass, field

from client_lib._validation import check_integer, invalid

__all__ = ["Padding"]


@dataclass(frozen=True, slots=True)
class Padding:
    """Fills every private span up to a multiple of ``bucket`` tokens, at its beginning, with the tokens of ``text``.

    The padding is quantised like the rest of the span, so under the noise it cannot be told where it ends better than
    what stands there can be told. It hides the length within the bucket and nothing else: how many private spans there
    are and how many buckets each fills stay visible, and what weak noise shows of the tokens shows of the padding too.
    Padding tokens are sent, computed and charged to the ledger as private tokens. ``text`` should be something that the
    model reads over; its tokens are repeated as often as needed.
    """

    bucket: int
    text: str = field(default="\n", repr=False)

    def __post_init__(self) -> None:
        check_integer("padding.bucket", self.bucket, 2, 4096)
        text: object = self.text
        if not isinstance(text, str) or not text:
            raise invalid("padding.text", "empty or no string", "at least one character")

    def apply(self, ids: tuple[int, ...], padding_ids: tuple[int, ...]) -> tuple[int, ...]:
        """The ids with padding before them; ``padding_ids`` are the tokens of ``text``."""
        if not padding_ids:
            raise invalid("padding.text", "text without a token", "text that the tokenizer makes tokens of")
        missing = -len(ids) % self.bucket
        repeated = padding_ids * (missing // len(padding_ids) + 1)
        return repeated[:missing] + ids
