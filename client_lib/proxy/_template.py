"""Messages as one prompt: names of roles in the clear, everything that somebody wrote private."""

from __future__ import annotations

from collections.abc import Sequence

from client_lib.proxy.requests import Message
from client_lib.spans import Span, private, public

__all__ = ["render"]


def render(messages: Sequence[Message], *, is_clear: bool, public_system: bool) -> list[Span]:
    """The spans of a chat, ending where the assistant's answer begins."""
    spans: list[Span] = []
    for message in messages:
        spans.append(public(f"{message.role.capitalize()}:"))
        is_public = is_clear or (public_system and message.role in ("system", "developer"))
        spans.append((public if is_public else private)(f" {message.content}"))
        spans.append(public("\n"))
    spans.append(public("Assistant:"))
    return spans
