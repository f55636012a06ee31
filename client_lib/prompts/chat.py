"""Chat messages as prompts: the template's fixed parts are public, the contents private.

A template is rendered with random placeholders, which gives the fixed parts, and with the contents.
The two must agree exactly, so the public parts cannot depend on a content, and a template that
changes contents (trims, escapes, merges them) is refused.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from client_lib._validation import invalid, missing_package
from client_lib.prompts.spans import CLEAR, Span, private, public

_Rendering: TypeAlias = Callable[[list[dict[str, str]]], str]


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
    """Turns messages into spans that end where the assistant's answer begins."""

    def __init__(self, rendering: _Rendering) -> None:
        self._rendering = rendering

    def __repr__(self) -> str:
        return "ChatTemplate()"

    @classmethod
    def simple(cls, before: Mapping[str, str], after: str = "\n", *, answer: str) -> ChatTemplate:
        """Write ``before[role]``, the content and ``after`` for every message, then ``answer``.

        Example: ``ChatTemplate.simple({"user": "User: ", "assistant": "You: "}, answer="You:")``.
        """
        texts = dict(before)

        def rendering(messages: list[dict[str, str]]) -> str:
            for message in messages:
                if message["role"] not in texts:
                    raise invalid("role", f"one of {', '.join(sorted(texts))}", repr(message["role"][:40]))
            return "".join(texts[message["role"]] + message["content"] + after for message in messages) + answer

        return cls(rendering)

    @classmethod
    def jinja(cls, source: str, **variables: Any) -> ChatTemplate:
        """Use a Jinja template as published with models, with variables such as ``eos_token``.

        It runs in Jinja's sandbox. ``bos_token`` is empty unless given. A template that writes it
        may be given it: the client drops it at the beginning of a prompt, and only there, if the
        bundle sends the same token. Needs the package ``jinja2`` (extra ``chat``).
        """
        try:
            from jinja2 import TemplateError
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError:
            raise missing_package("template", "rendered by the package jinja2", "chat") from None
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        try:
            template = environment.from_string(source)
        except (TemplateError, TypeError) as error:
            raise invalid("template", "a Jinja template", type(error).__name__) from None

        def rendering(messages: list[dict[str, str]]) -> str:
            try:
                return template.render(messages=messages, add_generation_prompt=True, **{"bos_token": "", **variables})
            except Exception as error:  # of any kind; its text may contain messages
                kind = type(error).__name__
            raise invalid("messages", "in roles and an order that the template accepts", kind)

        return cls(rendering)

    @classmethod
    def from_tokenizer_config(cls, path: str | os.PathLike[str]) -> ChatTemplate:
        """Read the template of ``tokenizer_config.json``, or ``chat_template.jinja`` beside it."""
        place = Path(path)
        try:
            config = json.loads(place.read_text("utf-8"))
            beside = place.parent / "chat_template.jinja"
            source = config.get("chat_template") or (beside.read_text("utf-8") if beside.exists() else None)
        except (OSError, ValueError, AttributeError) as error:
            raise invalid("path", "a readable tokenizer_config.json", type(error).__name__) from None
        if isinstance(source, list):  # several, by name
            named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
            source = named.get("default")
        if not isinstance(source, str):
            raise invalid("path", "a configuration with a chat_template", "one without")
        tokens = {name: config.get(name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
        values = {name: value.get("content") if isinstance(value, dict) else value for name, value in tokens.items()}
        return cls.jinja(source, **{name: value for name, value in values.items() if isinstance(value, str)})

    def render(self, messages: Sequence[Message], variant: str | None = None) -> tuple[Span, ...]:
        """Return the spans of a chat. Under the variant ``clear`` strings are public.

        Raises ``InvalidRequestError`` unless the template contains every content once, unchanged.
        """
        if not messages or not all(isinstance(message, Message) for message in messages):
            raise invalid("messages", "one or more Message objects", "something else")
        if not all(isinstance(message.role, str) for message in messages):
            raise invalid("role", "a string", "something else")
        contents = [message.spans(variant or "") for message in messages]
        marks = [f"C{secrets.token_hex(16)}C" for _ in messages]
        framed = self._with(messages, marks)
        pieces = re.split("(" + "|".join(marks) + ")", framed)
        if sorted(pieces[1::2]) != sorted(marks):
            raise invalid("template", "one that contains every content once", "a dropped or repeated content")
        spans: list[Span] = []
        for piece in pieces:
            spans += contents[marks.index(piece)] if piece in marks else [public(piece)] if piece else []
        texts = ["".join(span.text for span in content) for content in contents]
        if self._with(messages, texts) != "".join(span.text for span in spans):
            wanted = "one that leaves contents unchanged (many trim white space, so strip it first)"
            raise invalid("template", wanted, "a changed content or fixed parts that depend on one")
        return tuple(span for span in spans if span.text)

    def _with(self, messages: Sequence[Message], contents: Sequence[str]) -> str:
        pairs = zip(messages, contents, strict=True)
        return self._rendering([{"role": message.role, "content": text} for message, text in pairs])


class _RefusalError(Exception):
    """Raised by a template through ``raise_exception``; its text is dropped."""


def _refuse(_: object = None) -> None:
    raise _RefusalError
