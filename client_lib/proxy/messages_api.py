"""Anthropic's Messages API: requests as chats, and chats' answers as its objects and events."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
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
    ChatRequest,
    call_of,
    chat_request,
    common_fields,
    content_text,
    tool,
    tool_list,
    tool_use,
)
from client_lib.proxy.tools import Part, ToolCall, written

PATH = "/v1/messages"

_KNOWN = frozenset(
    {
        "model", "messages", "system", "max_tokens", "temperature", "top_p", "top_k", "stream", "stop_sequences",
        "tools", "tool_choice", "metadata", "output_config", "output_format",
    }
)  # fmt: skip
_REFUSED: Mapping[str, Sequence[object]] = {"mcp_servers": [[]], "container": [], "context_management": []}
_IGNORED: Mapping[str, Sequence[object]] = {
    "thinking": [{"type": "disabled"}],
    "service_tier": ["auto", "standard_only"],
    "cache_control": [],
}
_KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
_KINDS |= {413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error"}
_STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def parse_messages(body: Mapping[str, Any], *, strict: bool = False) -> ChatRequest:
    """Check a request to ``/v1/messages``. Raises :class:`APIError`."""
    ignored = fields.Ignored(strict=strict)
    ignored.unknown(body, _KNOWN | _IGNORED.keys() | _REFUSED.keys())
    ignored.take(body, _IGNORED)
    fields.refuse(body, _REFUSED)
    if body.get("max_tokens") is None:
        raise invalid("max_tokens", "present", "no such field")
    listed = body.get("messages")
    if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_MESSAGES:
        raise invalid("messages", f"an array of 1 to {MAX_MESSAGES} messages", json_kind(listed))
    system = body.get("system")
    messages = [] if system in (None, "", []) else [Message("system", content_text(system, "system", ignored))]
    for index, message in enumerate(listed):
        messages += _message(message, f"messages[{index}]", ignored)
    tools = tool_use(
        tuple(tool(_client_tool(one, index), f"tools[{index}]", "input_schema")
              for index, one in enumerate(tool_list(body.get("tools")))),
        _tool_choice(body.get("tool_choice")),
    )  # fmt: skip
    metadata = body.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise invalid("metadata", "an object", json_kind(metadata))
    # The names of OpenAI's routes, for what this one names differently.
    renamed = {**body, "stop": body.get("stop_sequences"), "user": metadata.get("user_id"), "n": None}
    renamed["response_format"] = _format(body, ignored)
    common = common_fields(renamed, "max_tokens", None, ignored.names)
    return chat_request(common, tuple(messages), tools)


def _format(body: Mapping[str, Any], ignored: fields.Ignored) -> object:
    """Return the ``response_format`` that ``output_config``, or its older name, stands for."""
    given, where = body.get("output_format"), "output_format"
    config = body.get("output_config")
    if config is not None:
        if not isinstance(config, dict):
            raise invalid("output_config", "an object", json_kind(config))
        ignored.unknown(config, ("format",), "output_config.", "output_config.")  # how much effort a model makes
        if config.get("format") is not None:
            given, where = config["format"], "output_config.format"
    if given is None:
        return None
    kind = given.get("type") if isinstance(given, dict) else None
    if kind != "json_schema":
        raise unsupported(f"{where}.type", "json_schema", fields.name_of(kind) if isinstance(kind, str) else "no name")
    return {"type": "json_schema", "json_schema": given}


def _client_tool(value: object, index: int) -> object:
    """Return a tool of the application; others run at Anthropic."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in (None, "custom"):
        raise unsupported(f"tools[{index}].type", "custom", fields.name_of(str(kind)))
    return value


def _tool_choice(value: object) -> str | tuple[str]:
    kind = value.get("type") if isinstance(value, dict) else None
    if value is None or kind in ("auto", "none"):
        return "none" if kind == "none" else "auto"
    if kind == "any":
        return "required"
    name = value.get("name") if isinstance(value, dict) and kind == "tool" else None
    if not isinstance(name, str):
        raise invalid("tool_choice", "an object of the type auto, any, none, or tool with a name", json_kind(value))
    return (name,)


def _message(value: object, where: str, ignored: fields.Ignored) -> list[Message]:
    """Return the messages that one of this API stands for; results of tools come first."""
    role = value.get("role") if isinstance(value, dict) else None
    if not isinstance(value, dict) or role not in ("user", "assistant"):
        raise invalid(f"{where}.role", "user or assistant", shown(role) if role is None else "another value")
    content = value.get("content")
    if not isinstance(content, list):
        return [Message(role, content_text(content, f"{where}.content", ignored))]
    texts: list[object] = []
    calls: list[ToolCall] = []
    results: list[Message] = []
    for index, block in enumerate(content):
        place = f"{where}.content[{index}]"
        kind = block.get("type") if isinstance(block, dict) else None
        if isinstance(block, dict) and kind == "tool_use" and role == "assistant":
            arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
            calls.append(call_of(block.get("name"), arguments, place))
        elif isinstance(block, dict) and kind == "tool_result" and role == "user":
            results.append(Message("tool", content_text(block.get("content") or "", f"{place}.content", ignored)))
        elif kind not in ("thinking", "redacted_thinking"):  # which these models do not write
            texts.append(block)
    text = content_text(texts, f"{where}.content", ignored) if texts else ""
    own = [Message(role, written(text, calls))] if text or calls or not results else []
    return [*results, *own]


@dataclass
class MessagesAnswer(Answer):
    """A response of ``/v1/messages``."""

    model: str
    fingerprint: str
    id: str = field(default_factory=lambda: "msg_" + secrets.token_hex(12))
    _blocks: int = 0
    _in_text: bool = False

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """Return the object of finished completions."""
        (choice,) = choices
        content: list[dict[str, Any]] = [{"type": "text", "text": choice.text}] if choice.text else []
        for call in choice.calls:
            content.append(_tool_use(call, json.loads(call.arguments)))
        return {**self._head(), "content": content, **_stopped(choice), "usage": _usage(choice)}

    def opening(self) -> list[bytes]:
        """Return the events before the first part."""
        # The tokens of the prompt are known at the end only.
        usage = {"input_tokens": 0, "output_tokens": 0}
        begun = {**self._head(), "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        return [_event("message_start", message=begun)]

    def part(self, part: Part, logprobs: Logprobs | None) -> list[bytes]:
        """Return the events of the next text or call."""
        if isinstance(part, str):
            begun = [] if self._in_text else [self._begin({"type": "text", "text": ""})]
            self._in_text = True
            delta = {"type": "text_delta", "text": part}
            return [*begun, _event("content_block_delta", index=self._blocks, delta=delta)]
        ended = self._end_text()
        begun = [self._begin(_tool_use(part, {}))]
        delta = {"type": "input_json_delta", "partial_json": part.arguments}
        return [*ended, *begun, _event("content_block_delta", index=self._blocks, delta=delta), self._end()]

    def closing(self, choice: Choice) -> list[bytes]:
        """Return the events after the last part."""
        last = _event("message_delta", delta=_stopped(choice), usage=_usage(choice))
        return [*self._end_text(), last, _event("message_stop")]

    def failure(self, error: APIError) -> bytes:
        """Return the event of a failure, which ends the stream."""
        return event(error_body(error), "error")

    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "type": "message", "role": "assistant", "model": self.model}

    def _begin(self, block: dict[str, Any]) -> bytes:
        return _event("content_block_start", index=self._blocks, content_block=block)

    def _end(self) -> bytes:
        index, self._blocks = self._blocks, self._blocks + 1
        return _event("content_block_stop", index=index)

    def _end_text(self) -> list[bytes]:
        is_open, self._in_text = self._in_text, False
        return [self._end()] if is_open else []


def error_body(error: APIError) -> dict[str, Any]:
    """Return an error in the form of this API."""
    return {"type": "error", "error": {"type": _KINDS.get(error.status, "api_error"), "message": error.message}}


def _event(kind: str, **content: Any) -> bytes:
    return event({"type": kind, **content}, kind)


def _tool_use(call: ToolCall, arguments: object) -> dict[str, Any]:
    return {"type": "tool_use", "id": "toolu_" + call.id.removeprefix("call_"), "name": call.name, "input": arguments}


def _stopped(choice: Choice) -> dict[str, Any]:
    return {"stop_reason": _STOPS.get(choice.finish_reason, "end_turn"), "stop_sequence": None}


def _usage(choice: Choice) -> dict[str, int]:
    usage = choice.completion.usage
    return {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}
