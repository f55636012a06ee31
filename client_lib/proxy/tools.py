"""Tools: their definitions as text for the model, and the calls that the model writes.

The definitions and the form of a call are those of the Hermes models, which Qwen and SmolLM2 also
follow: JSON in ``<tool_call>`` marks. Calls are also read where a model writes them in the way of
Llama 3 (a JSON object as the whole answer, perhaps behind ``<|python_tag|>``) or Mistral
(``[TOOL_CALLS]``). An answer that must be a call is made one by a JSON schema.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from client_lib._validation import has_surrogate, json_kind
from client_lib.proxy.errors import unsupported

OPEN, CLOSE = "<tool_call>\n", "\n</tool_call>"
"""What stands around a call in an answer."""

_MARKS = ("<tool_call>", "<|python_tag|>", "[TOOL_CALLS]")
_CLOSE = "</tool_call>"
_BETWEEN = re.compile(r"[ \n\t\r;]*")  # two calls
_MOST_HELD = 1 << 18  # characters; what is longer is no call
_HEAD = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
"""
_TAIL = """
</tools>

For each function call, return a JSON object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; ``parameters`` is a JSON schema."""

    name: str
    description: str = field(repr=False)
    parameters: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of a request; ``choice`` is "auto", "required", or the name of one in ``named``."""

    tools: tuple[Tool, ...]
    choice: Literal["auto", "required"] = "auto"
    named: str | None = None

    @property
    def must_call(self) -> bool:
        """Whether the answer must be a call."""
        return self.choice == "required"

    @property
    def text(self) -> str:
        """The definitions, as they stand in the system message."""
        return _HEAD + "\n".join(map(_definition, self.tools)) + _TAIL

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of a call. Raises APIError for definitions that contradict."""
        definitions: dict[str, Any] = {}
        calls = []
        for tool in self.tools:
            if self.named not in (None, tool.name):
                continue
            parameters = dict(tool.parameters) or {"type": "object"}
            # References point to the root of a schema.
            for key in ("$defs", "definitions"):
                found = parameters.pop(key, {})
                if not isinstance(found, dict):
                    raise unsupported("tools", f"with an object as {key}", json_kind(found))
                for name, one in found.items():
                    if definitions.setdefault(key, {}).setdefault(name, one) != one:
                        raise unsupported("tools", "with one meaning of each name in $defs", "two")
            properties = {"name": {"const": tool.name}, "arguments": parameters}
            required = {"required": ["name", "arguments"], "additionalProperties": False}
            calls.append({"type": "object", "properties": properties, **required})
        return {**definitions, **(calls[0] if len(calls) == 1 else {"anyOf": calls})}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call; ``arguments`` is a JSON object as text."""

    name: str
    arguments: str = field(repr=False)
    id: str = field(default_factory=lambda: "call_" + secrets.token_hex(12))


Part: TypeAlias = str | ToolCall


def written(content: str, calls: Sequence[ToolCall]) -> str:
    """Return the text of an answer, as the model would write it."""
    return "\n".join([*([content] if content else []), *(OPEN + _call(call) + CLOSE for call in calls)])


def _definition(tool: Tool) -> str:
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return json.dumps({"type": "function", "function": function}, ensure_ascii=False)


def _call(call: ToolCall) -> str:
    try:
        arguments = _DECODER.decode(call.arguments or "{}")
        text = json.dumps({"name": call.name, "arguments": arguments}, ensure_ascii=False)
    except (ValueError, RecursionError):
        text = ""
    # What is no JSON, or none that a prompt can hold, stays the string that it is.
    return text if text and not has_surrogate(text) else json.dumps({"name": call.name, "arguments": call.arguments})


class CallParser:
    """Splits the text of an answer, as it arrives, into texts and calls.

    Text of a call is held until it is complete. What looks like a call, but is no JSON of a call of
    one of the tools, is text; so is the rest of an answer that would have to be held beyond bounds.
    """

    def __init__(self, tools: ToolUse | None) -> None:
        self._names = frozenset() if tools is None else frozenset(tool.name for tool in tools.tools)
        self._held = ""
        self._mark = ""  # of the call that the held text begins
        self._is_begun = False
        self._has_called = False
        self._must_call = tools is not None and tools.must_call

    def feed(self, text: str) -> Iterator[Part]:
        """Take more text and yield what is complete."""
        if not self._names:
            if text:
                yield text
            return
        self._held += text
        if len(self._held) > _MOST_HELD:
            self._names = frozenset()
            held, self._held = self._held, ""
            yield held
            return
        while not self._must_call:
            if self._mark:
                end = self._held.find(_CLOSE) if self._mark == _MARKS[0] else -1
                if end < 0:
                    return
                yield from self._calls(self._held[:end], self._held[: end + len(_CLOSE)])
                self._held, self._mark = self._held[end + len(_CLOSE) :], ""
                continue
            if not self._is_begun and self._held.lstrip()[:1] in ("", "{"):
                return  # nothing yet, or the call of a Llama
            place, mark = min(
                ((self._held.find(mark), mark) for mark in _MARKS if mark in self._held), default=(-1, "")
            )
            if place < 0:
                # White space in front of a call is no text.
                end = len(self._held[: len(self._held) - _begun_mark(self._held)].rstrip())
                ready, self._held = self._held[:end], self._held[end:]
                if ready:
                    self._is_begun = True
                    yield ready
                return
            if before := self._held[:place].rstrip():
                yield before
            self._held, self._mark, self._is_begun = self._held[place:], mark, True

    def finish(self) -> Iterator[Part]:
        """Yield what is left at the end of the answer."""
        held, self._held = self._held, ""
        if held.strip():
            yield from self._calls(held, held)
        elif held and not self._has_called:
            yield held

    def _calls(self, text: str, whole: str) -> Iterator[Part]:
        """Yield the calls of a text, or the ``whole`` of it as text if it has none."""
        for mark in (*_MARKS, _CLOSE):
            text = text.replace(mark, " ")
        found: list[ToolCall] = []
        at = _between(text, 0)
        while at < len(text):
            try:
                value, at = _DECODER.raw_decode(text, at)
            except (ValueError, RecursionError):
                yield whole
                return
            at = _between(text, at)
            for one in value if isinstance(value, list) else [value]:
                call = self._read(one)
                if call is None:
                    yield whole
                    return
                found.append(call)
        self._has_called = True
        yield from found if found else [whole]

    def _read(self, value: object) -> ToolCall | None:
        name = value.get("name") if isinstance(value, dict) else None
        if not isinstance(value, dict) or not isinstance(name, str) or name not in self._names:
            return None
        arguments = value.get("arguments", value.get("parameters", {}))
        try:
            if isinstance(arguments, str):  # some models write the JSON as a string
                arguments = _DECODER.decode(arguments)
            text = json.dumps(arguments, ensure_ascii=False)
        except (ValueError, RecursionError):
            return None
        return ToolCall(name, text) if isinstance(arguments, dict) and not has_surrogate(text) else None


def _between(text: str, start: int) -> int:
    """Return where the next call begins."""
    found = _BETWEEN.match(text, start)
    return start if found is None else found.end()


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _begun_mark(text: str) -> int:
    """Return the length of the longest end of a text with which a mark begins."""
    for length in range(min(len(text), max(map(len, _MARKS))), 0, -1):
        if any(mark.startswith(text[-length:]) for mark in _MARKS):
            return length
    return 0
