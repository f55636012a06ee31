"""Messages as one prompt: the template's words in the clear, what somebody wrote private."""

from __future__ import annotations

from collections.abc import Sequence

from client_lib.prompts.chat import ChatTemplate
from client_lib.prompts.chat import Message as ChatMessage
from client_lib.prompts.spans import Span, private, public
from client_lib.proxy.requests import Message

__all__ = ["render"]

# For models without a template of their own. A content begins with a space of its own, as a word in a text does.
_PLAIN = ChatTemplate.simple(
    {"system": "System:", "user": "User:", "assistant": "Assistant:"}, after="\n", answer="Assistant:"
)


def render(
    messages: Sequence[Message], template: ChatTemplate | None, *, is_clear: bool, public_system: bool
) -> tuple[Span, ...]:
    """The spans of a chat, ending where the assistant's answer begins.

    Developer messages are system messages, which is what templates know. Under a model's own template contents lose
    the white space at their ends, which many templates cut off and none needs.
    """
    chat = []
    for message in messages:
        role = "system" if message.role == "developer" else message.role
        text = f" {message.content}" if template is None else message.content.strip()
        is_public = is_clear or (public_system and role == "system")
        chat.append(ChatMessage(role, public(text) if is_public else private(text)))
    return (template or _PLAIN).render(chat)
