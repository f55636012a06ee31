"""From token ids to text, token by token: characters of several bytes, spaces, stop strings, resumed completions.

What :class:`TextStream` has put out after k tokens depends on those k token ids and the stop strings alone, not on how
the tokens were grouped on their way. So a completion that is resumed after k tokens goes on with exactly the text that
the interrupted one had not put out yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["TextStream", "Tokenizer"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# A character is spread over four tokens at most. Bytes that have not made one after this many never will: they are let
# go, so that a model that writes garbage cannot make every token dearer than the one before.
_LONGEST_WAIT = 32


class Tokenizer(Protocol):
    """The one method of ``tokenizers.Tokenizer`` that is used here."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids."""


class TextStream:
    """Incremental detokenisation with stop strings.

    Tokens are decoded in a window that begins at an earlier token, so that the decoder sees the context it needs (some
    tokenisers drop the space of a first word). Text that ends in an incomplete character waits for the next token.
    With stop strings, the longest end of the text that could still become one waits too.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._window_start = 0
        self._window_text = ""  # text of the window up to _decoded
        self._decoded = 0  # tokens whose text is complete
        self._held = ""  # text that may be the beginning of a stop string
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Take one more token; returns the text that it releases. Sets ``stopped`` when a stop string is complete."""
        if self.stopped:
            raise ValueError("the text has met a stop string; nothing may follow")
        self._ids.append(token_id)
        window = self._decode(self._ids[self._window_start :])
        waiting = window.endswith(_REPLACEMENT) or len(window) <= len(self._window_text)
        if waiting and len(self._ids) - self._decoded < _LONGEST_WAIT:
            return ""
        new = window[len(self._window_text) :]
        self._window_start = self._decoded
        self._decoded = len(self._ids)
        self._window_text = self._decode(self._ids[self._window_start :])
        return self._release(new) if new else ""

    def extend(self, token_ids: Sequence[int]) -> tuple[str, int]:
        """Take several tokens; the text that they release, and how many were taken: fewer than all after a stop string.

        The same as one :meth:`push` after the other, but where nothing waits before or after them, the whole is decoded
        at once.
        """
        clean = not self._stop and self._decoded == len(self._ids) and 1 < len(token_ids) < _LONGEST_WAIT
        if clean:
            window = self._decode([*self._ids[self._window_start :], *token_ids])
            if len(window) > len(self._window_text) and not window.endswith(_REPLACEMENT):
                new = window[len(self._window_text) :]
                self._window_start = self._decoded
                self._ids += token_ids
                self._decoded = len(self._ids)
                self._window_text = self._decode(self._ids[self._window_start :])
                return new, len(token_ids)
        text = []
        for taken, token_id in enumerate(token_ids, start=1):
            text.append(self.push(token_id))
            if self.stopped:
                return "".join(text), taken
        return "".join(text), len(token_ids)

    def finish(self) -> str:
        """The text that is still held back; call once, after the last token."""
        if self.stopped:
            return ""
        window = self._decode(self._ids[self._window_start :])
        rest = self._release(window[len(self._window_text) :]) if len(window) > len(self._window_text) else ""
        if self.stopped:
            return rest
        held, self._held = self._held, ""
        return rest + held

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _release(self, new: str) -> str:
        """The part of the held and new text that no stop string can claim any more."""
        if not self._stop:
            return new
        text = self._held + new
        # What was held contains no whole stop string, so the first one found ends in the new part.
        found = [position for position in (text.find(stop) for stop in self._stop) if position >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a proper beginning of ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
