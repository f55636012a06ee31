"""Chat messages as prompts: the template's fixed parts public, what somebody wrote private.

A template is rendered twice: once with a random placeholder in place of every content, which gives the fixed parts,
and once with the contents themselves. Only if the fixed parts and the contents put together are the second rendering
to the character is the prompt used. So the public parts cannot depend on any content, and a template that changes
contents (cuts, escapes, folds them) is refused instead of being approximated.
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

from client_lib._validation import invalid
from client_lib.errors import InvalidRequest
from client_lib.prompts.spans import CLEAR, Span, private, public

__all__ = ["ChatTemplate", "Message"]

_Rendering: TypeAlias = Callable[[list[dict[str, str]]], str]


@dataclass(frozen=True, slots=True)
class Message:
    """One message. ``role`` is public. ``content`` is private if it is a string; spans say so themselves."""

    role: str
    content: str | Span | Sequence[Span] = field(repr=False)

    def spans(self, variant: str) -> tuple[Span, ...]:
        """The content as spans; under ``clear``, which adds no noise, a string is public, as it is in a prompt."""
        content: object = self.content
        if isinstance(content, str):
            return (public(content) if variant == CLEAR else private(content),)
        spans = (content,) if isinstance(content, Span) else content
        if not isinstance(spans, Sequence) or not all(
            isinstance(span, Span) and isinstance(span.text, str) for span in spans
        ):
            raise invalid("content", f"a {type(content).__name__}", "a str, or spans of private(...) and public(...)")
        return tuple(spans)


class ChatTemplate:
    """Turns messages into spans that end where the assistant's answer begins.

    Made by :meth:`simple` from a text for each role, or by :meth:`jinja` from the template that came with a model.
    """

    def __init__(self, rendering: _Rendering) -> None:
        self._rendering = rendering

    def __repr__(self) -> str:
        return "ChatTemplate()"

    @classmethod
    def simple(cls, before: Mapping[str, str], after: str = "\n", *, answer: str) -> ChatTemplate:
        """``before[role]``, the content, ``after`` for every message, and ``answer`` at the end.

        Example: ``ChatTemplate.simple({"user": "User: ", "assistant": "Assistant: "}, answer="Assistant:")``.
        """
        texts = dict(before)

        def rendering(messages: list[dict[str, str]]) -> str:
            for message in messages:
                if message["role"] not in texts:
                    raise invalid("role", repr(message["role"][:40]), ", ".join(sorted(texts)))
            return "".join(texts[message["role"]] + message["content"] + after for message in messages) + answer

        return cls(rendering)

    @classmethod
    def jinja(cls, source: str, **variables: Any) -> ChatTemplate:
        """A Jinja template in the form that models are published with; ``variables`` such as ``eos_token`` reach it.

        It runs in Jinja's sandbox, without access to files, modules or attributes that begin with an underscore. The
        variable ``bos_token`` is empty unless given, since the client puts the bundle's token first by itself. Needs
        the package ``jinja2`` (extra ``chat``).
        """
        try:
            from jinja2 import TemplateError
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError:
            raise InvalidRequest(
                "template: Jinja templates need the package jinja2; allowed: pip install 'del-serve[chat]'",
                field="template",
            ) from None
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        try:
            template = environment.from_string(source)
        except (TemplateError, TypeError) as error:
            raise invalid("template", f"malformed ({type(error).__name__})", "a Jinja template") from None

        def rendering(messages: list[dict[str, str]]) -> str:
            try:
                return template.render(messages=messages, add_generation_prompt=True, **{"bos_token": "", **variables})
            except Exception as error:  # a template can fail in any way, and the words may hold contents
                kind = type(error).__name__
            raise invalid("messages", f"refused by the template ({kind})", "roles in an order that it takes")

        return cls(rendering)

    @classmethod
    def from_tokenizer_config(cls, path: str | os.PathLike[str]) -> ChatTemplate:
        """The template in a model's ``tokenizer_config.json``, or in ``chat_template.jinja`` beside it."""
        place = Path(path)
        try:
            config = json.loads(place.read_text("utf-8"))
            beside = place.parent / "chat_template.jinja"
            source = config.get("chat_template") or (beside.read_text("utf-8") if beside.exists() else None)
        except (OSError, ValueError, AttributeError) as error:
            raise invalid("path", f"not readable ({type(error).__name__})", "a tokenizer_config.json") from None
        if isinstance(source, list):  # several, by name
            named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
            source = named.get("default")
        if not isinstance(source, str):
            raise invalid("path", "no chat_template in it", "the configuration of a model that has one")
        tokens = {name: config.get(name) for name in ("eos_token", "unk_token", "pad_token")}
        values = {name: value.get("content") if isinstance(value, dict) else value for name, value in tokens.items()}
        return cls.jinja(source, **{name: value for name, value in values.items() if isinstance(value, str)})

    def render(self, messages: Sequence[Message], variant: str | None = None) -> tuple[Span, ...]:
        """The spans of a chat. ``variant``: only ``clear`` matters, under which strings are public.

        Raises :class:`InvalidRequest` for what are no messages, and for a template that does not hold every content
        exactly once and as it is.
        """
        if not messages or not all(isinstance(message, Message) for message in messages):
            raise invalid("messages", "empty, or not all of them messages", "at least one Message")
        if not all(isinstance(message.role, str) for message in messages):
            raise invalid("role", "no string", "a string")
        contents = [message.spans(variant or "") for message in messages]
        marks = [f"C{secrets.token_hex(16)}C" for _ in messages]
        framed = self._with(messages, marks)
        pieces = re.split("(" + "|".join(marks) + ")", framed)
        if sorted(pieces[1::2]) != sorted(marks):
            raise invalid("template", "drops or repeats a content", "a template that holds every content once")
        spans: list[Span] = []
        for piece in pieces:
            spans += contents[marks.index(piece)] if piece in marks else [public(piece)] if piece else []
        texts = ["".join(span.text for span in content) for content in contents]
        if self._with(messages, texts) != "".join(span.text for span in spans):
            raise invalid(
                "template",
                "changes a content, or its fixed parts depend on one",
                "a template that leaves contents as they are; many cut spaces at their ends, so leave those out",
            )
        return tuple(span for span in spans if span.text)

    def _with(self, messages: Sequence[Message], contents: Sequence[str]) -> str:
        return self._rendering(
            [{"role": message.role, "content": text} for message, text in zip(messages, contents, strict=True)]
        )


class _RefusalError(Exception):
    """Raised by a template through ``raise_exception``; its words are not kept."""


def _refuse(_: object = None) -> None:
    raise _RefusalError
