"""Which messages of a chat the server wrote itself, and so need not be hidden from it.

The rule is that of the client's conversations and of the proxy: an assistant message is the
server's own if it is, white space at its ends aside, the answer to exactly the messages in front of
it, under the same variant and subject. A chat before each of its messages has a name,

    h_0 = H(key; variant, subject),   h_i = H(key; h_(i-1), role, content i),

and an answer is noted as H(key; h, text). The key is random: no text is kept, and a digest does not
reveal whether a guessed text occurred.

An answer in which this machine has replaced something is noted as the application has it, with
what the server wrote in each of these places. What is sent back is what the server wrote, so that
it learns nothing about the replacements.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from client_lib.prompts.chat import Message
from client_lib.prompts.digest import keyed_digest
from client_lib.prompts.spans import Span

MOST_ANSWERS = 20_000
"""Answers that are noted; the least recently used ones are dropped. A change counts as a half."""


@dataclass(frozen=True, slots=True)
class Change:
    """A place of an answer as the application has it, and what the server ``wrote`` there."""

    start: int
    end: int
    wrote: str = field(repr=False)


class AnswerMemory:
    """The answers of a server, by the chats that they belong to. For one thread at a time."""

    def __init__(self, key: bytes | None = None, noted: Iterable[bytes] = ()) -> None:
        self.key: bytes = key or secrets.token_bytes(32)
        self._noted: OrderedDict[bytes, tuple[Change, ...]] = OrderedDict.fromkeys(noted, ())
        self._size = len(self._noted)

    @property
    def noted(self) -> tuple[bytes, ...]:
        """The digests of all answers."""
        return tuple(self._noted)

    def turns(self, subject: str | None, variant: str, messages: Iterable[Message]) -> list[bytes]:
        """Return the names of a chat before each of its messages and at its end."""
        # None and "" are two subjects.
        names = [keyed_digest(self.key, "chat", "none" if subject is None else "some", subject or "", variant)]
        for message in messages:
            names.append(keyed_digest(self.key, message.role, *_fields(message), before=names[-1]))
        return names

    def note(self, turn: bytes, text: str, changes: Sequence[Change] = ()) -> None:
        """Note that the server wrote ``text``, but for the ``changes``, as the answer to a chat.

        ``turn`` is the name of the chat. Changes are in order and no white space at the ends.
        """
        start = len(text) - len(text.lstrip())
        moved = tuple(Change(one.start - start, one.end - start, one.wrote) for one in changes)
        for kind, noted, where in (("answer", text.strip(), moved), ("exact", text, tuple(changes))):
            name = keyed_digest(self.key, kind, noted, before=turn)
            self._drop(name)
            self._noted[name] = where
            self._size += 1 + len(where)
        while self._size > 2 * MOST_ANSWERS:
            self._drop(next(iter(self._noted)))

    def own(self, turn: bytes, message: Message) -> str | None:
        """Return what the server wrote, if it wrote this message at this turn, else None.

        White space at the message's ends that the server did not write is left out.
        """
        if message.role != "assistant" or not isinstance(message.content, str):
            return None
        for kind, text in (("exact", message.content), ("answer", message.content.strip())):
            name = keyed_digest(self.key, kind, text, before=turn)
            if name in self._noted:
                self._noted.move_to_end(name)
                return _as_written(text, self._noted[name])
        return None

    def _drop(self, name: bytes) -> None:
        changes = self._noted.pop(name, None)
        self._size -= 0 if changes is None else 1 + len(changes)

    def forget(self, turns: Sequence[bytes], messages: Sequence[Message]) -> None:
        """Forget the answers in a chat whose messages get new noise.

        In the clear beside the new counts, they would link these with the old ones.
        """
        for turn, message in zip(turns, messages, strict=False):
            if isinstance(message.content, str):
                for kind, text in (("answer", message.content.strip()), ("exact", message.content)):
                    self._drop(keyed_digest(self.key, kind, text, before=turn))


def _as_written(text: str, changes: Sequence[Change]) -> str:
    pieces, end = [], 0
    for one in changes:
        pieces += [text[end : one.start], one.wrote]
        end = one.end
    return "".join(pieces) + text[end:]


def _fields(message: Message) -> list[str]:
    if isinstance(message.content, str):
        return [message.content]
    spans = (message.content,) if isinstance(message.content, Span) else message.content
    return [field for span in spans for field in ("private" if span.is_private else "public", span.text)]
