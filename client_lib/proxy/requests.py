"""The JSON bodies of ``/v1/completions`` and ``/v1/chat/completions``, checked and typed.

What changes nothing for the user's intent is ignored and named in ``Request.ignored``: fields such
as ``metadata``, and unknown ones. What would change the answer and cannot be honored is refused
with a reason. The ``repr`` of requests shows no text.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from client_lib._validation import NO_JSON, has_surrogate, json_kind, must_be, parse_json, shown
from client_lib.options import SamplingOptions
from client_lib.prompts.chat import Message
from client_lib.proxy import fields, output
from client_lib.proxy.errors import APIError, invalid, unsupported
from client_lib.proxy.tools import Tool, ToolCall, ToolUse, written

MAX_MESSAGES = 1024
MAX_CHOICES = 64  # of one request, over all prompts
MAX_TOOLS = 128
ROLES = ("system", "developer", "user", "assistant", "tool")

_COMMON = output.NAMES | {"model", "stream", "stream_options", "user", "safety_identifier", "n", *fields.IGNORED}
_KNOWN_COMPLETION = _COMMON | {"prompt", "best_of", "echo"} | fields.REFUSED_COMPLETION.keys()
_KNOWN_CHAT = (
    _COMMON | {"messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice"} | fields.REFUSED_CHAT.keys()
)
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


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
    tools: ToolUse | None = None

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
    fields.refuse({"messages": body.get("messages")}, {"messages": []})
    ignored.unknown(body, _KNOWN_COMPLETION)
    ignored.take(body, fields.IGNORED)
    fields.refuse(body, fields.REFUSED_COMPLETION)
    prompt, *further = _prompts(body.get("prompt"))
    common = common_fields(body, "max_tokens", output.completion_logprobs(body), ignored.names)
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
    fields.refuse({"prompt": body.get("prompt")}, {"prompt": []})
    ignored.unknown(body, _KNOWN_CHAT)
    ignored.take(body, fields.IGNORED)
    fields.refuse(body, fields.REFUSED_CHAT)
    # The newer name comes first; the older one is checked and has no effect beside it.
    limit = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    fields.integer(body, "max_tokens", 1, output.MAX_TOKENS)
    messages = body.get("messages")
    if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_MESSAGES:
        raise invalid("messages", f"an array of 1 to {MAX_MESSAGES} messages", json_kind(messages))
    parsed = tuple(_message(message, f"messages[{index}]", ignored) for index, message in enumerate(messages))
    tools = tool_use(_tools(body.get("tools")), _tool_choice(body.get("tool_choice")))
    common = common_fields(body, limit, output.chat_logprobs(body), ignored.names)
    _check_stream(common, ())
    return chat_request(common, parsed, tools)


def chat_request(common: dict[str, Any], messages: tuple[Message, ...], tools: ToolUse | None) -> ChatRequest:
    """Return a chat, whose answer has the structure of a call if it must be one.

    A ``response_format`` is that of texts, as in OpenAI's API: where a call must be made, it has no
    effect.
    """
    if tools is not None and tools.must_call:
        common["sampling"]["structured_outputs"] = {"json": tools.schema()}
    return ChatRequest(**common, messages=messages, tools=tools)


def with_first_call(asked: ChatRequest) -> ChatRequest:
    """Demand a call if the request leaves it to the model and no tool has answered the user yet.

    Raises APIError for definitions of tools that contradict.
    """
    if asked.tools is None or asked.tools.must_call or not _awaits_call(asked.messages):
        return asked
    tools = replace(asked.tools, choice="required")
    sampling = asked.sampling.copy()
    sampling["structured_outputs"] = {"json": tools.schema()}
    return replace(asked, tools=tools, sampling=sampling)


def _awaits_call(messages: Sequence[Message]) -> bool:
    """Return whether no result of a tool belongs to the last user message.

    A result belongs to it if it stands behind it, or before it in the same turn: applications put
    hints behind a result, and a new call for each hint would be a loop.
    """
    is_before_user = False
    for message in reversed(messages):
        if message.role == "tool":
            return False
        if message.role == "assistant" and is_before_user:
            return True
        is_before_user = is_before_user or message.role == "user"
    return True


def tool_use(tools: tuple[Tool, ...], choice: str | tuple[str]) -> ToolUse | None:
    """Return the tools to offer.

    ``choice`` is none, auto, required, or the name of a tool in a tuple.
    """
    if isinstance(choice, tuple):
        if choice[0] not in (tool.name for tool in tools):
            raise invalid("tool_choice", "the name of one of the tools", "another name")
        return ToolUse(tools, "required", choice[0])
    if choice == "required" and not tools:
        raise invalid("tools", "at least one tool with tool_choice required", "none")
    if choice == "none" or not tools:
        return None
    return ToolUse(tools, "required" if choice == "required" else "auto")


def tool(value: object, where: str, schema: str = "parameters") -> Tool:
    """Return a tool from the object with its name, description and schema."""
    if not isinstance(value, dict):
        raise invalid(where, "an object with a name", json_kind(value))
    name, description, parameters = value.get("name"), value.get("description"), value.get(schema)
    if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
        raise invalid(f"{where}.name", f"a string of the form {_TOOL_NAME.pattern}", json_kind(name))
    if not isinstance(description, str | None):
        raise invalid(f"{where}.description", "a string", json_kind(description))
    if not isinstance(parameters, dict | None):
        raise invalid(f"{where}.{schema}", "a JSON schema", json_kind(parameters))
    return Tool(name, text_of(description or "", f"{where}.description"), parameters or {})


def tool_list(value: object) -> list[object]:
    """Return the elements of the field ``tools``."""
    listed = [] if value is None else value
    if not isinstance(listed, list) or len(listed) > MAX_TOOLS:
        raise invalid("tools", f"an array of at most {MAX_TOOLS} tools", json_kind(value))
    return listed


def _tools(value: object) -> tuple[Tool, ...]:
    found = []
    for index, one in enumerate(tool_list(value)):
        kind = one.get("type") if isinstance(one, dict) else None
        if not isinstance(one, dict) or kind != "function":
            shown_kind = fields.name_of(kind) if isinstance(kind, str) else json_kind(kind)
            raise unsupported(f"tools[{index}].type", "function", shown_kind)
        found.append(tool(one.get("function"), f"tools[{index}].function"))
    return tuple(found)


def _tool_choice(value: object) -> str | tuple[str]:
    if value is None:
        return "auto"
    if value in ("none", "auto", "required"):
        return str(value)
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise invalid("tool_choice", "none, auto, required, or the object of a function", json_kind(value))
    return (name,)


def _check_stream(common: Mapping[str, Any], further: Collection[str]) -> None:
    if common["stream"] and (common["n"] > 1 or further):
        field = "prompt" if further else "n"
        raise unsupported(field, "one in a stream; without stream there may be several", "more")


def common_fields(
    body: Mapping[str, Any], limit: str, logprobs: int | None, ignored: tuple[str, ...]
) -> dict[str, Any]:
    """Return the arguments of :class:`Request`."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise invalid("model", "an id of GET /v1/models", _shown(model), code="missing_model")
    sampling = output.sampling(body, limit)
    if logprobs is not None:
        sampling["logprobs"] = logprobs
    stream = fields.boolean(body, "stream")
    return {
        "model": model,
        "stream": stream,
        "include_usage": _include_usage(body.get("stream_options"), stream),
        "max_tokens_field": limit,
        "sampling": sampling,
        "subject": _subject(body, "user") or _subject(body, "safety_identifier"),
        "n": fields.integer(body, "n", 1, MAX_CHOICES) or 1,
        "ignored": ignored,
    }


def _subject(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not (isinstance(value, str) and value):
        raise invalid(name, "a non-empty string", _shown(value))
    return value


def _include_usage(value: object, stream: bool) -> bool:
    if value is None:
        return False
    if not stream:
        raise invalid("stream_options", "absent unless stream is true", "a value")
    if not isinstance(value, dict):
        raise invalid("stream_options", "an object", json_kind(value))
    without_effect = ("include_obfuscation", "continuous_usage_stats")  # the usage comes at the end
    fields.refuse_unknown(value, frozenset({"include_usage", *without_effect}), "stream_options.")
    for name in without_effect:
        fields.boolean(value, name, "stream_options.")
    return fields.boolean(value, "include_usage", "stream_options.")


def text_of(value: str, where: str) -> str:
    """Return a text that is valid Unicode. Raises APIError."""
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
        texts.append(text_of(prompt, "prompt"))
    return texts


_MESSAGE_FIELDS = frozenset({"role", "content", "tool_calls", "tool_call_id"})
# A field of OpenAI's older responses that applications send back, null as a rule.
_MESSAGE_EMPTY = frozenset({"function_call"})


def _message(value: object, where: str, ignored: fields.Ignored) -> Message:
    if not isinstance(value, dict):
        raise invalid(where, "an object with role and content", json_kind(value))
    role = value.get("role")
    if role == "function":
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
    text = content_text(content, f"{where}.content", ignored)
    calls = value.get("tool_calls") or []
    if not isinstance(calls, list) or (calls and role != "assistant"):
        raise invalid(f"{where}.tool_calls", "an array, in a message of the assistant", json_kind(calls))
    made = [_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(calls)]
    return Message(role, written(text, made) if made else text)


def _call(value: object, where: str) -> ToolCall:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict):
        raise invalid(where, "an object with a function", json_kind(value))
    return call_of(function.get("name"), function.get("arguments"), f"{where}.function")


def call_of(name: object, arguments: object, where: str) -> ToolCall:
    """Return a call of an earlier answer."""
    if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
        raise invalid(f"{where}.name", f"a string of the form {_TOOL_NAME.pattern}", json_kind(name))
    if not isinstance(arguments, str):
        raise invalid(f"{where}.arguments", "JSON as a string", json_kind(arguments))
    return ToolCall(name, text_of(arguments, f"{where}.arguments"))


def content_text(value: object, where: str, ignored: fields.Ignored) -> str:
    """Return the text of a content: a string, or an array of parts."""
    if isinstance(value, str):
        return text_of(value, where)
    if not isinstance(value, list) or not value:
        raise invalid(where, "a string or an array of text parts", json_kind(value))
    return "".join(_part(part, f"{where}[{index}]", ignored) for index, part in enumerate(value))


def _part(value: object, where: str, ignored: fields.Ignored) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(kind, str):
        raise invalid(where, '{"type": "text", "text": "..."}', "a part without a type")
    if kind not in ("text", "input_text", "output_text"):  # the Responses API has the longer names
        raise unsupported(f"{where}.type", "text", fields.name_of(kind))
    ignored.unknown(value, ("type", "text", "annotations", "logprobs"), f"{where}.", "messages[].content[].")
    text = value.get("text")
    if not isinstance(text, str):
        raise invalid(f"{where}.text", "a string", json_kind(text))
    return text_of(text, f"{where}.text")


def _shown(value: object) -> str:
    return "an empty string" if value == "" else shown(value)
