"""Incremental detokenization: multi-byte characters, spaces, stop strings, resumed completions.

The output after k tokens depends only on their ids and the stop strings, so a completion that
resumes continues with exactly the text that the interrupted one had not yet released.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# A character spans at most four tokens. Bytes that form no character after this many tokens are
# released, so that garbage cannot make the cost of a token grow.
_LONGEST_WAIT = 32


@dataclass(frozen=True)
class Anchor:
    """Tokens and their text, behind which a completion is decoded as the rest of a text.

    Some tokenizers drop the space of a first word. The first word of a completion is not the first
    word of a text: the prompt precedes it.
    """

    ids: tuple[int, ...] = ()
    text: str = ""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Anchor:
        """Return an anchor for a tokenizer; an empty one if it has no token for a letter."""
        ids = tuple(tokenizer.encode("a", add_special_tokens=False).ids)
        text = tokenizer.decode(ids)
        return cls(ids, text) if text and _REPLACEMENT not in text else cls()


_NO_ANCHOR = Anchor()


class TextStream:
    """Incremental detokenization with stop strings.

    Tokens are decoded in a window that begins at an earlier token, because some tokenizers drop the
    space of a first word; ``anchor`` precedes the first token. Text that ends
    in an incomplete character is held until the next token, and so is the longest end of the text
    that could become a stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), anchor: Anchor = _NO_ANCHOR) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = list(anchor.ids)
        self._window_start = 0
        self._window_text = anchor.text  # text of the window up to _decoded
        self._decoded = len(anchor.ids)  # tokens whose text is complete
        self._held = ""  # text that may be the beginning of a stop string
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Add a token and return the released text; set ``stopped`` after a stop string."""
        if self.stopped:
            raise ValueError("token_id must not follow a complete stop string")
        self._ids.append(token_id)
        window = self._tokenizer.decode(self._ids[self._window_start :])
        waiting = window.endswith(_REPLACEMENT) or len(window) <= len(self._window_text)
        if waiting and len(self._ids) - self._decoded < _LONGEST_WAIT:
            return ""
        new = window[len(self._window_text) :]
        self._window_start = self._decoded
        self._decoded = len(self._ids)
        self._window_text = self._tokenizer.decode(self._ids[self._window_start :])
        return self._release(new) if new else ""

    def extend(self, token_ids: Sequence[int]) -> tuple[str, int]:
        """Add tokens as :meth:`push` does, up to a stop string; return text and their number."""
        # If no text is held before or after the tokens, all are decoded at once.
        clean = not self._stop and self._decoded == len(self._ids) and 1 < len(token_ids) < _LONGEST_WAIT
        if clean:
            window = self._tokenizer.decode([*self._ids[self._window_start :], *token_ids])
            if len(window) > len(self._window_text) and not window.endswith(_REPLACEMENT):
                new = window[len(self._window_text) :]
                self._window_start = self._decoded
                self._ids += token_ids
                self._decoded = len(self._ids)
                self._window_text = self._tokenizer.decode(self._ids[self._window_start :])
                return new, len(token_ids)
        text = []
        for taken, token_id in enumerate(token_ids, start=1):
            text.append(self.push(token_id))
            if self.stopped:
                return "".join(text), taken
        return "".join(text), len(token_ids)

    def finish(self) -> str:
        """Return the text that is still held; call once, after the last token."""
        if self.stopped:
            return ""
        window = self._tokenizer.decode(self._ids[self._window_start :])
        rest = self._release(window[len(self._window_text) :]) if len(window) > len(self._window_text) else ""
        if self.stopped:
            return rest
        held, self._held = self._held, ""
        return rest + held

    def _release(self, new: str) -> str:
        """Return the part of the held and new text that cannot belong to a stop string."""
        if not self._stop:
            return new
        text = self._held + new
        # The held text contains no whole stop string, so the first one found ends in the new text.
        found = [position for position in (text.find(stop) for stop in self._stop) if position >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of ``text`` that is a proper prefix of ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
