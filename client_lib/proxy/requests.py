"""The JSON bodies of ``/v1/completions`` and ``/v1/chat/completions``, checked and turned into small values.

Unknown fields are refused, as OpenAI's API refuses them; known fields that cannot be served are accepted only at the
value that changes nothing (:mod:`client_lib.proxy.fields`). Representations of requests show no text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from client_lib._core.order import SamplingOptions
from client_lib.proxy import fields
from client_lib.proxy.errors import invalid, unsupported

__all__ = ["ChatRequest", "CompletionRequest", "Message", "Request", "parse_chat", "parse_completion", "parse_json"]

MAX_MESSAGES = 1024
ROLES = ("system", "developer", "user", "assistant")

_MAX_TOKENS = 131_072
_SURROGATE = re.compile("[\ud800-\udfff]")

_COMMON = frozenset({"model", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "stream_options", "user"})
_KNOWN_COMPLETION = _COMMON | {"prompt"} | fields.REFUSED_COMPLETION.keys()
_KNOWN_CHAT = (
    _COMMON
    | {"messages", "max_completion_tokens", "safety_identifier", "prompt_cache_key"}
    | fields.REFUSED_CHAT.keys()
)


@dataclass(frozen=True, slots=True)
class Request:
    """What both kinds of requests have.

    ``subject`` is who the body says the prompt is about, or None. ``max_tokens`` is None where the request leaves it
    open; ``max_tokens_field`` is what the request calls it, for messages.
    """

    model: str
    stream: bool
    include_usage: bool
    max_tokens: int | None
    max_tokens_field: str
    sampling: SamplingOptions = field(repr=False)
    subject: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class CompletionRequest(Request):
    """A request for the continuation of a text."""

    prompt: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat."""

    role: str
    content: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ChatRequest(Request):
    """A request for the next message of a chat."""

    messages: tuple[Message, ...] = field(repr=False)


def parse_json(data: bytes) -> Mapping[str, Any]:
    """The JSON object of a request's body. Raises ``ApiError``."""
    problem = "is not JSON; allowed: a JSON object in UTF-8"
    try:
        body = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        body = None
    else:
        problem = f"is {fields.kind_of(body)}; allowed: a JSON object"
    # Raised outside the handler: the parser's error carries the whole document along.
    if not isinstance(body, dict):
        raise invalid(None, f"The body {problem}", code="invalid_json")
    return body


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def parse_completion(body: Mapping[str, Any]) -> CompletionRequest:
    """A request to ``/v1/completions``. Raises ``ApiError``."""
    fields.refuse_unknown(body, _KNOWN_COMPLETION)
    fields.refuse(body, fields.REFUSED_COMPLETION)
    return CompletionRequest(**_common(body, "max_tokens"), prompt=_prompt(body.get("prompt")))


def parse_chat(body: Mapping[str, Any]) -> ChatRequest:
    """A request to ``/v1/chat/completions``. Raises ``ApiError``."""
    fields.refuse_unknown(body, _KNOWN_CHAT)
    fields.refuse(body, fields.REFUSED_CHAT)
    limit = "max_tokens"
    if body.get("max_completion_tokens") is not None:
        limit = "max_completion_tokens"
        if body.get("max_tokens") is not None:
            raise invalid("max_tokens", "is given together with max_completion_tokens; allowed: one of the two")
    messages = body.get("messages")
    if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_MESSAGES:
        found = "missing" if messages is None else fields.kind_of(messages)
        raise invalid("messages", f"is {found}; allowed: an array of 1 to {MAX_MESSAGES} messages")
    parsed = tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages))
    return ChatRequest(**_common(body, limit), messages=parsed)


# --- what both have ---------------------------------------------------------------------------------------------------


def _common(body: Mapping[str, Any], limit: str) -> dict[str, Any]:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        found = "missing" if model is None else "empty" if model == "" else fields.shown(model)
        raise invalid("model", f"is {found}; allowed: the id of one of GET /v1/models", code="missing_model")
    sampling = SamplingOptions()
    if (temperature := fields.number(body, "temperature", 0, 2)) is not None:
        sampling["temperature"] = temperature
    if (top_p := fields.number(body, "top_p", 0, 1, above=True)) is not None:
        sampling["top_p"] = top_p
    if (seed := fields.integer(body, "seed", -(2**63), 2**63 - 1)) is not None:
        sampling["seed"] = seed
    if stop := _stop(body.get("stop")):
        sampling["stop"] = stop
    stream = fields.boolean(body, "stream")
    return {
        "model": model,
        "stream": stream,
        "include_usage": _include_usage(body.get("stream_options"), stream),
        "max_tokens": fields.integer(body, limit, 1, _MAX_TOKENS),
        "max_tokens_field": limit,
        "sampling": sampling,
        "subject": _subject(body, "user") or _subject(body, "safety_identifier"),
    }


def _subject(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not (isinstance(value, str) and value):
        raise invalid(
            name, f"is {'empty' if value == '' else fields.shown(value)}; allowed: a string that is not empty"
        )
    return value


def _stop(value: object) -> list[str]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > 4 or not all(isinstance(stop, str) and stop for stop in stops):
        raise invalid("stop", f"is {fields.kind_of(value)}; allowed: a string or up to 4, none of them empty")
    return stops


def _include_usage(value: object, stream: bool) -> bool:
    if value is None:
        return False
    if not stream:
        raise invalid("stream_options", "is given without stream; allowed: only with stream true")
    if not isinstance(value, dict):
        raise invalid("stream_options", f"is {fields.kind_of(value)}; allowed: an object")
    fields.refuse_unknown(value, frozenset({"include_usage", "include_obfuscation"}), "stream_options.")
    if fields.boolean(value, "include_obfuscation", "stream_options."):
        raise unsupported("stream_options.include_obfuscation", "true", "false, or leaving it out")
    return fields.boolean(value, "include_usage", "stream_options.")


# --- text -------------------------------------------------------------------------------------------------------------


def _text(value: str, where: str) -> str:
    if _SURROGATE.search(value):
        raise invalid(where, "has a lone surrogate; allowed: valid Unicode")
    return value


def _prompt(value: object) -> str:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        value = value[0]
    if isinstance(value, list) and value:
        found = f"an array of {len(value)} prompts" if isinstance(value[0], str) else "a prompt of token ids"
        raise unsupported("prompt", found, "one string, or an array of one string")
    if not isinstance(value, str) or not value:
        found = "missing" if value is None else "empty" if value in ("", []) else fields.shown(value)
        raise invalid("prompt", f"is {found}; allowed: a string that is not empty")
    return _text(value, "prompt")


_MESSAGE_FIELDS = frozenset({"role", "content"})
# What OpenAI's own answers carry, and applications send back as they came. They may be there, and empty.
_MESSAGE_EMPTY = frozenset({"annotations", "audio", "function_call", "name", "refusal", "tool_calls"})


def _message(value: object, where: str) -> Message:
    if not isinstance(value, dict):
        raise invalid(where, f"is {fields.kind_of(value)}; allowed: an object with role and content")
    fields.refuse_unknown(value, _MESSAGE_FIELDS | _MESSAGE_EMPTY, f"{where}.")
    role = value.get("role")
    if role in ("tool", "function"):
        raise unsupported(f"{where}.role", role, ", ".join(ROLES))
    if role not in ROLES:
        found = _name_or_kind(role)
        raise invalid(f"{where}.role", f"is {found}; allowed: {', '.join(ROLES)}")
    for name in sorted(_MESSAGE_EMPTY & value.keys()):
        if value[name] not in (None, []):
            raise unsupported(f"{where}.{name}", fields.kind_of(value[name]), "leaving it out, or null")
    return Message(role, _content(value.get("content"), f"{where}.content"))


def _content(value: object, where: str) -> str:
    if isinstance(value, str):
        return _text(value, where)
    if not isinstance(value, list) or not value:
        found = "missing or null" if value is None else fields.kind_of(value)
        raise invalid(where, f"is {found}; allowed: a string, or an array of text parts")
    return "".join(_part(part, f"{where}[{index}]") for index, part in enumerate(value))


def _part(value: object, where: str) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(kind, str):
        raise invalid(where, 'is no part with a type; allowed: {"type": "text", "text": "..."}')
    if kind != "text":
        raise unsupported(f"{where}.type", fields.name_of(kind), "text")
    fields.refuse_unknown(value, frozenset({"type", "text"}), f"{where}.")
    text = value.get("text")
    if not isinstance(text, str):
        raise invalid(f"{where}.text", f"is {fields.kind_of(text)}; allowed: a string")
    return _text(text, f"{where}.text")


def _name_or_kind(value: object) -> str:
    """A short name itself, everything else by its kind."""
    if value is None:
        return "missing or null"
    return fields.name_of(value) if isinstance(value, str) and len(value) <= 32 else fields.kind_of(value)
