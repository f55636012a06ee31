"""An observer's best simple guess of a private prompt, with the right tokens marked."""

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


@dataclass(frozen=True)
class Guess:
    """A guessed prompt as runs of (text, right), each of right or of wrong tokens only."""

    runs: tuple[tuple[str, bool], ...]
    right: int
    tokens: int

    @property
    def recovered_fraction(self) -> float:
        """The fraction of the prompt's tokens that the guess has right."""
        return self.right / self.tokens

    def marked(self) -> str:
        """Return the guessed text in one line, right tokens in [brackets]."""
        return "".join(f"[{text}]" if right else text for text, right in self._pieces())

    def styled(self) -> Text:
        """Return the same for a terminal, in color."""
        from rich.text import Text

        return Text.assemble(
            *((f"[{text}]", "bold green") if right else (text, "dim") for text, right in self._pieces())
        )

    def _pieces(self) -> Iterator[tuple[str, bool]]:
        """Yield the runs, with leading spaces of right ones outside their brackets."""
        for text, right in self.runs:
            body = (text.lstrip(" ") or text) if right else ""
            lead = text[: len(text) - len(body)]
            yield from ((piece, mark) for piece, mark in ((lead, False), (body, True)) if piece)


def guess_tokens(
    bundle: Bundle, variant: str, encoded: EncodedPrompt, tokenizer: Tokenizer, token_ids: Sequence[int]
) -> Guess:
    """Guess the private tokens of ``encoded``, and compare with the true ``token_ids``.

    The guess uses the counts and the server's data: table, noise level and token frequencies.
    """
    import numpy as np

    from del_core.mechanism.likelihood import map_tokens
    from del_core.wire import PrivateSegment

    codes = np.concatenate([segment.codes for segment in encoded.segments if isinstance(segment, PrivateSegment)])
    guessed = map_tokens(bundle.mechanism(variant), bundle.client.table_of(variant), bundle.log_prior, codes).tolist()
    hits = [guess == token for guess, token in zip(guessed, token_ids, strict=True)]
    return Guess(tuple(_runs(tokenizer, guessed, hits)), sum(hits), len(hits))


def _runs(tokenizer: Tokenizer, token_ids: Sequence[int], hits: Sequence[bool]) -> Iterator[tuple[str, bool]]:
    """Yield the text of each longest run, in one line."""
    start = 0
    for end in range(1, len(hits) + 1):
        if end == len(hits) or hits[end] != hits[start]:
            text = tokenizer.decode(list(token_ids[start:end]), skip_special_tokens=False)
            yield printable(text.replace("\n", " ").replace("\t", " ")), hits[start]
            start = end
