"""Which messages of a chat the server wrote itself, and so need not be hidden from it.

The rule is that of the client's conversations and of the proxy: an assistant message is the
server's own if it is, white space at its ends aside, the answer to exactly the messages in front of
it, under the same variant and subject. A chat before each of its messages has a name,

    h_0 = H(key; variant, subject),   h_i = H(key; h_(i-1), role, content i),

and an answer is noted as H(key; h, text). The key is random: no text is kept, and a digest does not
reveal whether a guessed text occurred.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from client_lib.prompts.chat import Message
from client_lib.prompts.digest import keyed_digest
from client_lib.prompts.spans import Span

MOST_ANSWERS = 20_000
"""Answers that are noted; the least recently used ones are dropped."""


class AnswerMemory:
    """The answers of a server, by the chats that they belong to. For one thread at a time."""

    def __init__(self, key: bytes | None = None, noted: Iterable[bytes] = ()) -> None:
        self.key: bytes = key or secrets.token_bytes(32)
        self._noted: OrderedDict[bytes, None] = OrderedDict.fromkeys(noted)

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

    def note(self, turn: bytes, text: str) -> None:
        """Note that the server wrote ``text`` as the answer to the chat of this name."""
        for kind, noted in (("answer", text.strip()), ("exact", text)):
            self._noted[keyed_digest(self.key, kind, noted, before=turn)] = None
        while len(self._noted) > 2 * MOST_ANSWERS:
            self._noted.popitem(last=False)

    def own(self, turn: bytes, message: Message) -> str | None:
        """Return the text of this message if the server wrote it at this turn, else None.

        White space at its ends that the server did not write is left out.
        """
        if message.role != "assistant" or not isinstance(message.content, str):
            return None
        text = message.content
        if self._is_noted("exact", text, turn):
            return text
        return text.strip() if self._is_noted("answer", text.strip(), turn) else None

    def _is_noted(self, kind: str, text: str, turn: bytes) -> bool:
        name = keyed_digest(self.key, kind, text, before=turn)
        if name not in self._noted:
            return False
        self._noted.move_to_end(name)
        return True

    def forget(self, turns: Sequence[bytes], messages: Sequence[Message]) -> None:
        """Forget the answers in a chat whose messages get new noise.

        In the clear beside the new counts, they would link these with the old ones.
        """
        for turn, message in zip(turns, messages, strict=False):
            if isinstance(message.content, str):
                for kind, text in (("answer", message.content.strip()), ("exact", message.content)):
                    self._noted.pop(keyed_digest(self.key, kind, text, before=turn), None)


def _fields(message: Message) -> list[str]:
    if isinstance(message.content, str):
        return [message.content]
    spans = (message.content,) if isinstance(message.content, Span) else message.content
    return [field for span in spans for field in ("private" if span.is_private else "public", span.text)]
