"""What an observer makes of a private prompt: the best simple guess of its tokens, marked where it is right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from delctl.terminal import printable

if TYPE_CHECKING:
    from rich.text import Text
    from tokenizers import Tokenizer

    from client_lib import EncodedPrompt
    from del_core.bundle import Bundle

__all__ = ["Guess", "guess_tokens"]


@dataclass(frozen=True)
class Guess:
    """A guessed prompt as runs of (text, right): every run is of tokens that are all right or all wrong."""

    runs: tuple[tuple[str, bool], ...]
    right: int
    tokens: int

    @property
    def recovered_fraction(self) -> float:
        """The share of the prompt's tokens that the guess has right."""
        return self.right / self.tokens

    def marked(self) -> str:
        """The guessed text in one line, what is right in [brackets]."""
        return "".join(f"[{text}]" if right else text for text, right in self._pieces())

    def styled(self) -> Text:
        """The same for a terminal, where colour marks what is right as well."""
        from rich.text import Text

        return Text.assemble(
            *((f"[{text}]", "bold green") if right else (text, "dim") for text, right in self._pieces())
        )

    def _pieces(self) -> Iterator[tuple[str, bool]]:
        """The runs, with the spaces that a right one begins with moved out of its mark (unless it is all spaces)."""
        for text, right in self.runs:
            body = (text.lstrip(" ") or text) if right else ""
            lead = text[: len(text) - len(body)]
            yield from ((piece, mark) for piece, mark in ((lead, False), (body, True)) if piece)


def guess_tokens(
    bundle: Bundle, variant: str, encoded: EncodedPrompt, tokenizer: Tokenizer, token_ids: Sequence[int]
) -> Guess:
    """The guess of the private tokens of ``encoded``, against ``token_ids``, which they really are.

    Made from the counts that are sent and what the server holds: table, noise level and word frequencies.
    """
    import numpy as np

    from del_core.mechanism.likelihood import map_tokens
    from del_core.wire import PrivateSegment

    codes = np.concatenate([segment.codes for segment in encoded.segments if isinstance(segment, PrivateSegment)])
    guessed = map_tokens(bundle.mechanism(variant), bundle.client.table, bundle.log_prior, codes).tolist()
    hits = [guess == token for guess, token in zip(guessed, token_ids, strict=True)]
    return Guess(tuple(_runs(tokenizer, guessed, hits)), sum(hits), len(hits))


def _runs(tokenizer: Tokenizer, token_ids: Sequence[int], hits: Sequence[bool]) -> Iterator[tuple[str, bool]]:
    """The text of each longest run, in one line."""
    start = 0
    for end in range(1, len(hits) + 1):
        if end == len(hits) or hits[end] != hits[start]:
            text = tokenizer.decode(list(token_ids[start:end]), skip_special_tokens=False)
            yield printable(text.replace("\n", " ").replace("\t", " ")), hits[start]
            start = end
