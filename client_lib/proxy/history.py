"""The messages of a chat as spans: which are private, and which are left out of a full context.

- A message that the server wrote is public, because the server knows it: an assistant message that
  is, white space at its ends aside, the answer to exactly the messages in front of it, under the
  same variant and subject. Everything else that somebody wrote is private.
- If a chat does not fit the context, the oldest turns are left out: system and developer messages
  and everything from the last user message on are kept, and what is kept of the rest begins with a
  user message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from client_lib.prompts.chat import ChatTemplate, Message
from client_lib.prompts.spans import Span, public
from client_lib.proxy.tools import OPEN

# For models without a template. Contents begin with a space, as words in a text do.
_PLAIN = ChatTemplate.simple(
    {"system": "System:", "user": "User:", "assistant": "Assistant:"}, after="\n", answer="Assistant:"
)
# As the templates of Hermes and Qwen write them.
_RESULT, _END_RESULT = "<tool_response>\n", "\n</tool_response>"
_INSTRUCTIONS = frozenset({"system", "developer"})


@dataclass(frozen=True, slots=True)
class Tools:
    """The definitions of tools as a span, and whether the answer must be a call."""

    span: Span | None = None
    must_call: bool = False


NO_TOOLS = Tools()


def content_of(message: Message) -> str:
    """Return the text of a message, as made by :mod:`client_lib.proxy.requests`."""
    assert isinstance(message.content, str)
    return message.content


def contents(
    messages: Sequence[Message],
    public_ones: Sequence[bool],
    own: Sequence[str | None],
    template: ChatTemplate | None,
    *,
    hide: Callable[[str], Sequence[Span]],
    show: Callable[[str], Sequence[Span]],
) -> list[Message]:
    """Return the messages with spans as contents, as they are rendered.

    ``own`` has what the server wrote, where it wrote a message itself. ``show`` makes the spans of
    this and of public messages, and ``hide`` those of all else, in the order of the chat.

    Developer messages become system messages. Under a model's own template the contents are
    stripped of white space, which many templates trim anyway. So are ``own`` answers of the server:
    their white space may be the application's.
    """
    made = []
    for message, is_public, written in zip(messages, public_ones, own, strict=True):
        text = content_of(message) if written is None else written
        if template is not None or written is not None:
            text = text.strip()
        if template is None:
            text = f" {text}"
        role = "system" if message.role == "developer" else message.role
        made.append(Message(role, tuple((show if is_public or written is not None else hide)(text))))
    return made


def spans_in(message: Message) -> tuple[Span, ...]:
    """Return the spans of a message, as made by :func:`contents`."""
    assert isinstance(message.content, tuple)
    return message.content


def render(chat: Sequence[Message], template: ChatTemplate | None, tools: Tools = NO_TOOLS) -> list[Span]:
    """Return the spans of a chat, ending where the assistant's answer begins.

    Definitions of tools stand at the end of a first system message, and results of tools in user
    messages, because not every template has room for either.
    """
    space = "" if template is not None else " "
    messages: list[Message] = []
    for message in chat:
        if message.role == "tool":
            result = (public(_RESULT), *spans_in(message), public(_END_RESULT))
            before = messages[-1].content if messages and messages[-1].role == "results" else ()
            assert isinstance(before, tuple)
            if before:
                messages[-1] = Message("results", (*before, public("\n"), *result))
            else:
                messages.append(Message("results", (public(space), *result) if space else result))
        else:
            messages.append(message)
    messages = [Message("user", one.content) if one.role == "results" else one for one in messages]
    if tools.span is not None:
        if messages and messages[0].role == "system":
            messages[0] = Message("system", (*spans_in(messages[0]), public("\n\n"), tools.span))
        else:
            messages.insert(0, Message("system", (public(space), tools.span) if space else tools.span))
    spans = list((template or _PLAIN).render(messages))
    return [*spans, public(OPEN)] if tools.must_call else spans


def is_instruction(message: Message) -> bool:
    """Return whether a message is the application's own, of the role system or developer."""
    return message.role in _INSTRUCTIONS


def selections(messages: Sequence[Message]) -> Iterator[list[int]]:
    """Yield the indices of the messages to keep: all of them, then fewer and fewer."""
    yield list(range(len(messages)))
    users = [index for index, message in enumerate(messages) if message.role == "user"]
    fixed = [index for index, message in enumerate(messages) if is_instruction(message)]
    first = next((index for index in range(len(messages)) if index not in fixed), 0)
    for start in users:
        if start > first:
            yield [*(index for index in fixed if index < start), *range(start, len(messages))]
