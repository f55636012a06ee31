"""Chat messages as prompts: the template's fixed parts are public, the contents private.

A template is rendered with random placeholders, which gives the fixed parts. So the public parts
cannot depend on a content: a template decides what stands around the contents and in which order,
never what is public.

A template of the caller's own is rendered with the contents, too. The two must agree exactly, so
one that changes contents (trims, escapes, merges them) is refused. A template that came with a
bundle never sees a content: it could refuse the chats in which a word occurs, and the server would
learn from every request that comes, or does not come, whether it did.
"""

from __future__ import annotations

import datetime
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, TypeGuard

from client_lib._validation import invalid, missing_package
from client_lib.prompts.spans import CLEAR, Prompt, Span, private, public
from del_core.bundle import ChatFormat
from del_core.bundle.chat import read_template

_Rendering: TypeAlias = Callable[[list[dict[str, str]], "_Setting"], str]


@dataclass(frozen=True, slots=True)
class Message:
    """One message. The role is public; a string as content is private, spans are as marked."""

    role: str
    content: str | Span | Sequence[Span] = field(repr=False)

    def spans(self, variant: str) -> tuple[Span, ...]:
        """Return the content as spans. Under ``clear`` a string is public, as in a prompt."""
        content: object = self.content
        if isinstance(content, str):
            return (public(content) if variant == CLEAR else private(content),)
        spans = (content,) if isinstance(content, Span) else content
        if not isinstance(spans, Sequence) or not all(
            isinstance(span, Span) and isinstance(span.text, str) for span in spans
        ):
            raise invalid("content", "a str or spans of private(...) and public(...)", f"a {type(content).__name__}")
        return tuple(spans)


class ChatTemplate:
    """Turns messages into spans that end where the assistant's answer begins.

    ``end_token_ids`` are the tokens that end the answer, as far as the template's source names
    them; the server knows the model's own besides. Without ``sees_contents``, the template is
    rendered with placeholders only.
    """

    def __init__(self, rendering: _Rendering, end_token_ids: Sequence[int] = (), *, sees_contents: bool = True) -> None:
        self._rendering = rendering
        self._sees_contents = sees_contents
        self.end_token_ids: tuple[int, ...] = tuple(end_token_ids)

    def __repr__(self) -> str:
        return "ChatTemplate()"

    @classmethod
    def simple(cls, before: Mapping[str, str], after: str = "\n", *, answer: str) -> ChatTemplate:
        """Write ``before[role]``, the content and ``after`` for every message, then ``answer``.

        Example: ``ChatTemplate.simple({"user": "User: ", "assistant": "You: "}, answer="You:")``.
        """
        texts = dict(before)

        def rendering(messages: list[dict[str, str]], _: _Setting) -> str:
            for message in messages:
                if message["role"] not in texts:
                    raise invalid("role", f"one of {', '.join(sorted(texts))}", repr(message["role"][:40]))
            return "".join(texts[message["role"]] + message["content"] + after for message in messages) + answer

        return cls(rendering)

    @classmethod
    def jinja(cls, source: str, **variables: str) -> ChatTemplate:
        """Use a Jinja template as published with models, with variables such as ``eos_token``.

        What transformers documents for templates is there: ``{% generation %}``, ``{% break %}``,
        ``tojson``, ``strftime_now`` (with the day in UTC; hours are zero) and ``raise_exception``.
        It runs in a sandbox within bounds (:mod:`del_core.prompts.sandbox`). ``bos_token`` is empty
        unless given. A template that writes it may be given it: the client drops it at the
        beginning of a prompt, and only there, if the bundle sends the same token. Needs the package
        ``jinja2`` (extra ``chat``).
        """
        return cls._compiled(source, variables)

    @classmethod
    def of(cls, chat: ChatFormat) -> ChatTemplate:
        """Use the template of a bundle, ``bundle().manifest.chat``, which sees no contents."""
        return cls._compiled(chat.template, chat.tokens, chat.end_token_ids, sees_contents=False)

    @classmethod
    def _compiled(
        cls, source: str, variables: Mapping[str, str], ends: Sequence[int] = (), *, sees_contents: bool = True
    ) -> ChatTemplate:
        try:
            from del_core.prompts.sandbox import BoundedTemplate, BoundsError
        except ImportError:
            raise missing_package("template", "rendered by the package jinja2", "chat") from None
        given: object = source
        if not isinstance(given, str):
            raise invalid("template", "a Jinja template", f"a {type(given).__name__}")
        reason = ""
        try:
            template = BoundedTemplate(source)
        except ValueError as error:
            reason = str(error)
        if reason:
            raise invalid("template", "a Jinja template", reason)

        def rendering(messages: list[dict[str, str]], setting: _Setting) -> str:
            bounds = kind = ""
            try:
                return template.render(messages, {"bos_token": "", **variables}, day=setting.day)
            except BoundsError as error:
                bounds = str(error)
            except Exception as error:  # of any kind; its text may contain messages
                kind = type(error).__name__ + (f" ({error})" if setting.is_test else "")
            if bounds:
                raise invalid("template", "one within bounds", f"one that exceeds them: {bounds}")
            raise invalid("messages", "in roles and an order that the template accepts", kind)

        return cls(rendering, ends, sees_contents=sees_contents)

    @classmethod
    def from_tokenizer_config(cls, path: str | os.PathLike[str]) -> ChatTemplate:
        """Read the template of ``tokenizer_config.json``, or ``chat_template.jinja`` beside it."""
        try:
            found = read_template(Path(path))
        except (OSError, ValueError) as error:
            raise invalid("path", "a readable tokenizer_config.json", type(error).__name__) from None
        if found is None:
            raise invalid("path", "a configuration with a chat_template", "one without")
        source, tokens = found
        return cls._compiled(source, tokens)

    def check(self) -> None:
        """Render test chats. Raises ``InvalidRequestError`` with the reason if one is refused.

        A template need not accept the role ``system``.
        """
        first = Message("user", private("What is it?"))
        for chat in ([first], [first, Message("assistant", public("A test.")), Message("user", private("Thanks."))]):
            self._render(chat, "", is_test=True)

    def render(self, messages: Sequence[Message], variant: str | None = None) -> tuple[Span, ...]:
        """Return the spans of a chat. Under the variant ``clear`` strings are public.

        Raises ``InvalidRequestError`` unless the template contains every content once and, if it
        is not a bundle's, unchanged.
        """
        return self._render(messages, variant or "")

    def _render(self, messages: Sequence[Message], variant: str, *, is_test: bool = False) -> tuple[Span, ...]:
        if not messages or not all(isinstance(message, Message) for message in messages):
            raise invalid("messages", "one or more Message objects", "something else")
        if not all(isinstance(message.role, str) for message in messages):
            raise invalid("role", "a string", "something else")
        contents = [message.spans(variant) for message in messages]
        marks = [f"C{secrets.token_hex(16)}C" for _ in messages]
        setting = _Setting(datetime.datetime.now(datetime.UTC).date(), is_test)
        framed = self._with(messages, marks, setting)
        pieces = re.split("(" + "|".join(marks) + ")", framed)
        if sorted(pieces[1::2]) != sorted(marks):
            raise invalid("template", "one that contains every content once", "a dropped or repeated content")
        spans: list[Span] = []
        for piece in pieces:
            spans += contents[marks.index(piece)] if piece in marks else [public(piece)] if piece else []
        if not self._sees_contents and not is_test:
            return tuple(span for span in spans if span.text)
        texts = ["".join(span.text for span in content) for content in contents]
        if self._with(messages, texts, setting) != "".join(span.text for span in spans):
            wanted = "one that leaves contents unchanged (many trim white space, so strip it first)"
            raise invalid("template", wanted, "a changed content or fixed parts that depend on one")
        return tuple(span for span in spans if span.text)

    def _with(self, messages: Sequence[Message], contents: Sequence[str], setting: _Setting) -> str:
        pairs = zip(messages, contents, strict=True)
        return self._rendering([{"role": message.role, "content": text} for message, text in pairs], setting)


@dataclass(frozen=True, slots=True)
class _Setting:
    """What both renderings of a chat share; a test's messages may be quoted."""

    day: datetime.date
    is_test: bool


Chat: TypeAlias = Sequence[Message]
#: A prompt, or a chat, which the bundle's template turns into one.
PromptOrChat: TypeAlias = Prompt | Chat


def is_chat(prompt: object) -> TypeGuard[Chat]:
    """Return whether a prompt is given as messages."""
    if isinstance(prompt, str | bytes) or not isinstance(prompt, Sequence):
        return False
    return any(isinstance(part, Message) for part in prompt)


def identity(prompt: PromptOrChat, spans: Sequence[Span], variant: str) -> Sequence[Span]:
    """Return what identifies a prompt that is sent again, for the memo of its counts.

    A chat is the same chat under every template. Otherwise a server that changes the template would
    get new counts for a chat that it has seen.
    """
    if not is_chat(prompt):
        return spans
    parts = [(public(message.role), *message.spans(variant)) for message in prompt]
    return (public(f"chat of {len(parts)}"), *(span for part in parts for span in part))
