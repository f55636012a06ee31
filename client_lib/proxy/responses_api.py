"""OpenAI's Responses API: requests as chats, and chats' answers as its objects and events."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from client_lib._validation import json_kind, shown
from client_lib.prompts.chat import Message
from client_lib.proxy import fields
from client_lib.proxy.answers import Answer, Choice, event
from client_lib.proxy.errors import APIError, invalid, unsupported
from client_lib.proxy.logprobs import Logprobs
from client_lib.proxy.requests import (
    MAX_MESSAGES,
    ROLES,
    ChatRequest,
    call_of,
    chat_request,
    common_fields,
    content_text,
    text_of,
    tool,
    tool_list,
    tool_use,
)
from client_lib.proxy.tools import Part, Tool, ToolCall, written

_KNOWN = frozenset(
    {
        "model", "input", "instructions", "max_output_tokens", "temperature", "top_p", "stream", "text", "tools",
        "tool_choice", "previous_response_id", "user", "safety_identifier", "store", "top_logprobs",
    }
)  # fmt: skip
_REFUSED: Mapping[str, Sequence[object]] = {"background": [False], "conversation": [], "prompt": [], "messages": [[]]}
# What concerns answers that OpenAI's models give, or where they are kept.
_IGNORED: Mapping[str, Sequence[object]] = {
    **{name: values for name, values in fields.IGNORED.items() if name != "store"},
    "include": [[]],
    "max_tool_calls": [],
    "reasoning": [{}],
    "stream_options": [{}],
    "top_logprobs": [0],
    "truncation": ["auto", "disabled"],
}
_MOST_KEPT, _MOST_CHARACTERS = 1000, 8 << 20


@dataclass(frozen=True, slots=True)
class _Kept:
    messages: tuple[Message, ...] = field(repr=False)
    characters: int


class Past:
    """The chats of earlier responses, for ``previous_response_id``, in this process's memory only.

    The least recently used ones are dropped. A chat belongs to a subject.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str | None], _Kept] = OrderedDict()
        self._characters = 0

    def keep(self, response_id: str, subject: str | None, messages: Sequence[Message]) -> None:
        """Keep a chat with its answer."""
        size = sum(len(str(message.content)) for message in messages)
        self._kept[response_id, subject] = _Kept(tuple(messages), size)
        self._characters += size
        while len(self._kept) > _MOST_KEPT or self._characters > _MOST_CHARACTERS:
            _, dropped = self._kept.popitem(last=False)
            self._characters -= dropped.characters

    def messages(self, response_id: str, subject: str | None) -> tuple[Message, ...]:
        """Return a chat. Raises APIError if it is not known."""
        kept = self._kept.get((response_id, subject))
        if kept is None:
            wanted = "the id of a response that this proxy remembers for the subject"
            raise invalid("previous_response_id", wanted, "another one", code="previous_response_not_found", status=404)
        self._kept.move_to_end((response_id, subject))
        return kept.messages


@dataclass(frozen=True, slots=True)
class ResponsesRequest:
    """A request to ``/v1/responses``: the chat that it stands for, and what only this API has."""

    chat: ChatRequest
    """Without the instructions, which are those of one response only."""
    instructions: Message | None = field(repr=False)
    previous: str | None
    store: bool
    shown: Mapping[str, Any] = field(repr=False)
    """Fields of the request that the response repeats."""


def parse_responses(body: Mapping[str, Any], *, strict: bool = False) -> ResponsesRequest:
    """Check a request to ``/v1/responses``. Raises :class:`APIError`."""
    ignored = fields.Ignored(strict=strict)
    ignored.unknown(body, _KNOWN | _IGNORED.keys() | _REFUSED.keys())
    ignored.take(body, _IGNORED)
    fields.refuse(body, _REFUSED)
    instructions = body.get("instructions")
    system = None
    if instructions not in (None, ""):
        system = Message("system", content_text(instructions, "instructions", ignored))
    messages = _input(body.get("input"), ignored)
    tools = tool_use(_tools(body.get("tools"), ignored), _tool_choice(body.get("tool_choice")))
    # The names of the other routes, for what this one names differently.
    renamed = {**body, "stop": None, "n": None, "stream_options": None, "response_format": _format(body.get("text"))}
    common = common_fields(renamed, "max_output_tokens", None, ignored.names)
    previous = body.get("previous_response_id")
    if previous is not None and not isinstance(previous, str):
        raise invalid("previous_response_id", "a string or absent", json_kind(previous))
    store = True if body.get("store") is None else fields.boolean(body, "store")
    repeated = ("instructions", "max_output_tokens", "previous_response_id", "temperature", "top_p", "metadata")
    shown_fields = {
        **{name: body.get(name) for name in repeated},
        "tools": body.get("tools") or [],
        "tool_choice": body.get("tool_choice") or "auto",
        "text": body.get("text") or {"format": {"type": "text"}},
        "store": store,
    }
    return ResponsesRequest(chat_request(common, tuple(messages), tools), system, previous, store, shown_fields)


def _input(value: object, ignored: fields.Ignored) -> list[Message]:
    if isinstance(value, str):
        return [Message("user", text_of(value, "input"))]
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
        raise invalid("input", f"a string or an array of 1 to {MAX_MESSAGES} items", json_kind(value))
    messages: list[Message] = []
    calls: list[ToolCall] = []
    for index, item in enumerate(value):
        where = f"input[{index}]"
        if not isinstance(item, dict):
            raise invalid(where, "an object", json_kind(item))
        kind = item.get("type", "message")
        if kind == "function_call":
            calls.append(call_of(item.get("name"), item.get("arguments"), where))
            continue
        if calls:
            _add_calls(messages, calls)
        if kind == "function_call_output":
            messages.append(Message("tool", content_text(item.get("output"), f"{where}.output", ignored)))
        elif kind == "message":
            role = item.get("role")
            if role not in ROLES or role == "tool":
                raise invalid(f"{where}.role", "one of system, developer, user, assistant", shown(role))
            messages.append(Message(role, content_text(item.get("content"), f"{where}.content", ignored)))
        elif kind != "reasoning":  # which these models do not write
            shown_kind = fields.name_of(kind) if isinstance(kind, str) else json_kind(kind)
            raise unsupported(f"{where}.type", "message, function_call or function_call_output", shown_kind)
    if calls:
        _add_calls(messages, calls)
    return messages


def _add_calls(messages: list[Message], calls: list[ToolCall]) -> None:
    """Append calls to the message of the assistant that they belong to."""
    content = ""
    if messages and messages[-1].role == "assistant":
        content = str(messages.pop().content)
    messages.append(Message("assistant", written(content, calls)))
    calls.clear()


def _tools(value: object, ignored: fields.Ignored) -> tuple[Tool, ...]:
    found = []
    for index, one in enumerate(tool_list(value)):
        kind = one.get("type") if isinstance(one, dict) else None
        if kind != "function":
            shown_kind = fields.name_of(kind) if isinstance(kind, str) else json_kind(kind)
            raise unsupported(f"tools[{index}].type", "function", shown_kind)
        found.append(tool(one, f"tools[{index}]"))
    return tuple(found)


def _tool_choice(value: object) -> str | tuple[str]:
    if value is None or value in ("none", "auto", "required"):
        return "auto" if value is None else str(value)
    name = value.get("name") if isinstance(value, dict) and value.get("type") == "function" else None
    if not isinstance(name, str):
        raise invalid("tool_choice", "none, auto, required, or the object of a function", json_kind(value))
    return (name,)


def _format(value: object) -> object:
    """Return the ``response_format`` that the field ``text`` stands for."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise invalid("text", "an object with a format", json_kind(value))
    given = value.get("format")
    if isinstance(given, dict) and given.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": given}
    return given


@dataclass
class ResponsesAnswer(Answer):
    """A response of ``/v1/responses``, whole or as events with a running number."""

    model: str
    fingerprint: str
    asked: ResponsesRequest = field(repr=False)
    keep: Callable[[str, Message], None] = field(repr=False)
    """Called with the id and the message of the answer."""
    id: str = field(default_factory=lambda: "resp_" + secrets.token_hex(16))
    created: int = field(default_factory=lambda: int(time.time()))
    _number: int = 0
    _output: list[dict[str, Any]] = field(default_factory=list, repr=False)
    _text: list[str] | None = field(default=None, repr=False)  # of the message that is open
    _message_id: str = ""

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """Return the object of finished completions."""
        (choice,) = choices
        self._kept(choice)
        items: list[dict[str, Any]] = []
        if choice.text or not choice.calls:
            items.append(_message(choice.text))
        return self._object(choice, [*items, *map(_function_call, choice.calls)])

    def opening(self) -> list[bytes]:
        """Return the events before the first part."""
        begun = self._object(None, [])
        return [self._event("response.created", response=begun), self._event("response.in_progress", response=begun)]

    def part(self, part: Part, logprobs: Logprobs | None) -> list[bytes]:
        """Return the events of the next text or call."""
        if isinstance(part, str):
            events = self._begin_text() if self._text is None else []
            assert self._text is not None
            self._text.append(part)
            return [*events, self._event("response.output_text.delta", **self._place(), delta=part, logprobs=[])]
        item = _function_call(part)
        place = {"item_id": item["id"], "output_index": len(self._output) + (self._text is not None)}
        events = [
            *self._end_text(),
            self._added({**item, "arguments": "", "status": "in_progress"}),
            self._event("response.function_call_arguments.delta", **place, delta=part.arguments),
            self._event("response.function_call_arguments.done", **place, arguments=part.arguments, name=part.name),
        ]
        return [*events, self._done(item)]

    def closing(self, choice: Choice) -> list[bytes]:
        """Return the events after the last part."""
        self._kept(choice)
        events = self._begin_text() if self._text is None and not self._output else []
        events += self._end_text()
        whole = self._object(choice, self._output)
        return [*events, self._event(f"response.{whole['status']}", response=whole)]

    def failure(self, error: APIError) -> bytes:
        """Return the event of a failure, which ends the stream."""
        return self._event("error", code=error.code, message=error.message, param=error.param)

    def _kept(self, choice: Choice) -> None:
        text = written(choice.text, choice.calls) if choice.calls else choice.text
        self.keep(self.id, Message("assistant", text))

    def _begin_text(self) -> list[bytes]:
        self._text = []
        self._message_id = "msg_" + secrets.token_hex(16)
        begun = {**_message("", self._message_id), "content": [], "status": "in_progress"}
        added = self._added(begun)
        return [added, self._event("response.content_part.added", **self._place(), part=_text_part(""))]

    def _end_text(self) -> list[bytes]:
        if self._text is None:
            return []
        text, place = "".join(self._text), self._place()
        self._text = None
        return [
            self._event("response.output_text.done", **place, text=text, logprobs=[]),
            self._event("response.content_part.done", **place, part=_text_part(text)),
            self._done(_message(text, self._message_id)),
        ]

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._message_id, "output_index": len(self._output), "content_index": 0}

    def _added(self, item: dict[str, Any]) -> bytes:
        return self._event("response.output_item.added", output_index=len(self._output), item=item)

    def _done(self, item: dict[str, Any]) -> bytes:
        self._output.append(item)
        return self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)

    def _event(self, kind: str, **content: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return event({"type": kind, "sequence_number": number, **content}, kind)

    def _object(self, choice: Choice | None, items: list[dict[str, Any]]) -> dict[str, Any]:
        is_cut = choice is not None and choice.completion.finish_reason == "length"
        usage = None
        if choice is not None:
            counts = choice.completion.usage
            usage = {
                "input_tokens": counts.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": counts.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": counts.total_tokens,
            }
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": "in_progress" if choice is None else "incomplete" if is_cut else "completed",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "model": self.model,
            "output": items,
            "parallel_tool_calls": True,
            "truncation": "auto",
            "usage": usage,
            **self.asked.shown,
        }


def _message(text: str, message_id: str | None = None) -> dict[str, Any]:
    return {
        "id": message_id or "msg_" + secrets.token_hex(16),
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [_text_part(text)],
    }


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _function_call(call: ToolCall) -> dict[str, Any]:
    return {
        "id": "fc_" + call.id.removeprefix("call_"),
        "type": "function_call",
        "status": "completed",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
    }
