"""The JSON bodies of ``/v1/completions`` and ``/v1/chat/completions``, checked and typed.

What changes nothing for the user's intent is ignored and named in ``Request.ignored``: fields such
as ``metadata``, and unknown ones. What would change the answer and cannot be honored is refused
with a reason. The ``repr`` of requests shows no text.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from client_lib._validation import NO_JSON, has_surrogate, json_kind, must_be, parse_json, shown
from client_lib.options import SamplingOptions
from client_lib.prompts.chat import Message
from client_lib.proxy import fields
from client_lib.proxy.errors import APIError, invalid, unsupported
from del_core.wire import Limits

MAX_MESSAGES = 1024
MAX_CHOICES = 64  # of one request, over all prompts
ROLES = ("system", "developer", "user", "assistant")

_MAX_TOKENS = 2**31 - 1  # more than a server has room for is cut
_MAX_STOP_TOKEN_IDS = Limits().max_stop_token_ids

_COMMON = frozenset(
    {
        "model",
        "max_tokens",
        "temperature",
        "top_p",
        "seed",
        "stop",
        "stop_token_ids",  # of vLLM's API, not of OpenAI's
        "stream",
        "stream_options",
        "user",
        "n",
        *fields.IGNORED,
    }
)
_KNOWN_COMPLETION = _COMMON | {"prompt", "best_of", "echo"} | fields.REFUSED_COMPLETION.keys()
_KNOWN_CHAT = _COMMON | {"messages", "max_completion_tokens"} | fields.REFUSED_CHAT.keys()
_IGNORED = {name: values for name, values in fields.IGNORED.items() if name not in ("safety_identifier",)}


@dataclass(frozen=True, slots=True)
class Request:
    """The common part of both kinds; ``max_tokens_field`` is the request's name of max_tokens."""

    model: str
    stream: bool
    include_usage: bool
    max_tokens_field: str
    sampling: SamplingOptions = field(repr=False)
    subject: str | None = field(repr=False)
    n: int
    """The number of answers to each prompt; all of them are answers to the same counts."""
    ignored: tuple[str, ...]
    """The names of the fields that have no effect."""


@dataclass(frozen=True, slots=True)
class CompletionRequest(Request):
    """A request for the continuation of a text."""

    prompt: str = field(repr=False)
    further: tuple[str, ...] = field(repr=False)
    """The prompts behind the first one."""
    echo: bool

    def each(self) -> list[CompletionRequest]:
        """Return a request for each prompt."""
        return [replace(self, prompt=prompt, further=()) for prompt in (self.prompt, *self.further)]


@dataclass(frozen=True, slots=True)
class ChatRequest(Request):
    """A request for the next message of a chat."""

    messages: tuple[Message, ...] = field(repr=False)

    def each(self) -> list[ChatRequest]:
        """Return this request, which has one prompt."""
        return [self]


def parse_body(data: bytes) -> Mapping[str, Any]:
    """Return the JSON object of a request's body. Raises :class:`APIError`."""
    try:
        body = parse_json(data.removeprefix(codecs.BOM_UTF8).decode("utf-8"))
    except UnicodeDecodeError:
        body = NO_JSON
    if isinstance(body, dict):
        return body
    found = "something else" if body is NO_JSON else json_kind(body)
    raise APIError(400, must_be("the body", "a JSON object in UTF-8", found), code="invalid_json")


def parse_completion(body: Mapping[str, Any], *, strict: bool = False) -> CompletionRequest:
    """Check a request to ``/v1/completions``. Raises :class:`APIError`.

    ``strict`` refuses fields without effect, instead of ignoring them.
    """
    ignored = fields.Ignored(strict=strict)
    # Text in a field of the other route is a mistake, not a field to ignore.
    fields.refuse({name: body.get(name) for name in ("messages",)}, {"messages": []})
    ignored.unknown(body, _KNOWN_COMPLETION)
    ignored.take(body, _IGNORED)
    fields.refuse(body, fields.REFUSED_COMPLETION)
    prompt, *further = _prompts(body.get("prompt"))
    common = _common(body, "max_tokens", ignored.names)
    if common["n"] * (1 + len(further)) > MAX_CHOICES:
        raise invalid("prompt", f"at most {MAX_CHOICES} with n answers each", "more")
    _check_stream(common, further)
    most = fields.integer(body, "best_of", 1, MAX_CHOICES)
    if most not in (None, common["n"]):
        raise unsupported("best_of", "n or absent, because no log probabilities rank the answers", str(most))
    return CompletionRequest(**common, prompt=prompt, further=tuple(further), echo=fields.boolean(body, "echo"))


def parse_chat(body: Mapping[str, Any], *, strict: bool = False) -> ChatRequest:
    """Check a request to ``/v1/chat/completions``, as :func:`parse_completion`."""
    ignored = fields.Ignored(strict=strict)
    fields.refuse({name: body.get(name) for name in ("prompt",)}, {"prompt": []})
    ignored.unknown(body, _KNOWN_CHAT)
    ignored.take(body, _IGNORED)
    fields.refuse(body, fields.REFUSED_CHAT)
    # The newer name comes first; the older one is checked and has no effect beside it.
    limit = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    fields.integer(body, "max_tokens", 1, _MAX_TOKENS)
    messages = body.get("messages")
    if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_MESSAGES:
        raise invalid("messages", f"an array of 1 to {MAX_MESSAGES} messages", json_kind(messages))
    parsed = tuple(_message(message, f"messages[{index}]", ignored) for index, message in enumerate(messages))
    common = _common(body, limit, ignored.names)
    _check_stream(common, ())
    return ChatRequest(**common, messages=parsed)


def _check_stream(common: Mapping[str, Any], further: Collection[str]) -> None:
    if common["stream"] and (common["n"] > 1 or further):
        field = "prompt" if further else "n"
        raise unsupported(field, "one in a stream; without stream there may be several", "more")


def _common(body: Mapping[str, Any], limit: str, ignored: tuple[str, ...]) -> dict[str, Any]:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise invalid("model", "an id of GET /v1/models", _shown(model), code="missing_model")
    sampling = {
        "max_tokens": fields.integer(body, limit, 1, _MAX_TOKENS),
        "temperature": fields.number(body, "temperature", 0, 2),
        "top_p": fields.number(body, "top_p", 0, 1, above=True),
        "seed": fields.integer(body, "seed", -(2**63), 2**63 - 1),
        "stop": _stop(body.get("stop")) or None,
        "stop_token_ids": _stop_token_ids(body.get("stop_token_ids")) or None,
    }
    stream = fields.boolean(body, "stream")
    return {
        "model": model,
        "stream": stream,
        "include_usage": _include_usage(body.get("stream_options"), stream),
        "max_tokens_field": limit,
        "sampling": {name: value for name, value in sampling.items() if value is not None},
        "subject": _subject(body, "user") or _subject(body, "safety_identifier"),
        "n": fields.integer(body, "n", 1, MAX_CHOICES) or 1,
        "ignored": ignored,
    }


def _subject(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not (isinstance(value, str) and value):
        raise invalid(name, "a non-empty string", _shown(value))
    return value


def _stop(value: object) -> list[str]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > 4 or not all(isinstance(stop, str) and stop for stop in stops):
        raise invalid("stop", "a non-empty string or up to 4 of them", json_kind(value))
    return stops


def _stop_token_ids(value: object) -> list[int]:
    ids = [] if value is None else value
    if (
        not isinstance(ids, list)
        or len(ids) > _MAX_STOP_TOKEN_IDS
        or not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in ids)
    ):
        raise invalid("stop_token_ids", f"up to {_MAX_STOP_TOKEN_IDS} token ids", json_kind(value))
    return ids


def _include_usage(value: object, stream: bool) -> bool:
    if value is None:
        return False
    if not stream:
        raise invalid("stream_options", "absent unless stream is true", "a value")
    if not isinstance(value, dict):
        raise invalid("stream_options", "an object", json_kind(value))
    fields.refuse_unknown(value, frozenset({"include_usage", "include_obfuscation"}), "stream_options.")
    fields.boolean(value, "include_obfuscation", "stream_options.")  # has no effect on this machine
    return fields.boolean(value, "include_usage", "stream_options.")


def _text(value: str, where: str) -> str:
    if has_surrogate(value):
        raise invalid(where, "valid Unicode", "a lone surrogate")
    return value


def _prompts(value: object) -> list[str]:
    prompts: list[object] = value if isinstance(value, list) and value else [value]
    if len(prompts) > MAX_CHOICES:
        raise invalid("prompt", f"at most {MAX_CHOICES} strings", str(len(prompts)))
    if isinstance(prompts[0], int | list):
        raise unsupported("prompt", "a string or an array of strings", "a prompt of token ids")
    texts = []
    for prompt in prompts:
        if not isinstance(prompt, str) or not prompt:
            raise invalid("prompt", "a non-empty string", _shown(prompt))
        texts.append(_text(prompt, "prompt"))
    return texts


_MESSAGE_FIELDS = frozenset({"role", "content"})
# Fields of OpenAI's responses that applications send back, and that say something if not empty.
_MESSAGE_EMPTY = frozenset({"function_call", "tool_calls"})


def _message(value: object, where: str, ignored: fields.Ignored) -> Message:
    if not isinstance(value, dict):
        raise invalid(where, "an object with role and content", json_kind(value))
    role = value.get("role")
    if role in ("tool", "function"):
        raise unsupported(f"{where}.role", f"one of {', '.join(ROLES)}", role)
    if role not in ROLES:
        # A short role is a name; anything else may be text.
        found = fields.name_of(role) if isinstance(role, str) and len(role) <= 32 else json_kind(role)
        raise invalid(f"{where}.role", f"one of {', '.join(ROLES)}", found)
    for name in sorted(_MESSAGE_EMPTY & value.keys()):
        if value[name] not in (None, []):
            raise unsupported(f"{where}.{name}", "absent or null", json_kind(value[name]))
    # An identity of the answer, or a name, is not part of a prompt.
    in_vain = {name: one for name, one in value.items() if name not in _MESSAGE_FIELDS | _MESSAGE_EMPTY}
    ignored.unknown({name: one for name, one in in_vain.items() if one != []}, (), f"{where}.", "messages[].")
    content = value.get("content")
    if role == "assistant" and content in (None, []):
        content = ""
    return Message(role, _content(content, f"{where}.content", ignored))


def _content(value: object, where: str, ignored: fields.Ignored) -> str:
    if isinstance(value, str):
        return _text(value, where)
    if not isinstance(value, list) or not value:
        raise invalid(where, "a string or an array of text parts", json_kind(value))
    return "".join(_part(part, f"{where}[{index}]", ignored) for index, part in enumerate(value))


def _part(value: object, where: str, ignored: fields.Ignored) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(kind, str):
        raise invalid(where, '{"type": "text", "text": "..."}', "a part without a type")
    if kind != "text":
        raise unsupported(f"{where}.type", "text", fields.name_of(kind))
    ignored.unknown(value, ("type", "text"), f"{where}.", "messages[].content[].")
    text = value.get("text")
    if not isinstance(text, str):
        raise invalid(f"{where}.text", "a string", json_kind(text))
    return _text(text, f"{where}.text")


def _shown(value: object) -> str:
    return "an empty string" if value == "" else shown(value)
