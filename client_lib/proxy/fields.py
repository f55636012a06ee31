"""Checks of single fields of a request's JSON body.

Values are shown in messages only where they cannot be text of a prompt: numbers, booleans, null and names of things
(a model, a role). Everything else is described by its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from client_lib.proxy.errors import ApiError, invalid, unsupported

__all__ = [
    "REFUSED_CHAT",
    "REFUSED_COMPLETION",
    "boolean",
    "integer",
    "kind_of",
    "name_of",
    "number",
    "refuse",
    "refuse_unknown",
    "shown",
]

_NAME_LIMIT = 64


def kind_of(value: object) -> str:
    """What a JSON value is, without what is in it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, list):
        return f"an array of {len(value)}"
    kinds: dict[type, str] = {str: "a string", dict: "an object", int: "a number", float: "a number"}
    return kinds[type(value)]


def shown(value: object) -> str:
    """A value as it may stand in a message: numbers and booleans themselves, the rest by kind."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value:.12g}" if isinstance(value, float) or abs(value) < 1 << 64 else "a number of many digits"
    return kind_of(value)


def name_of(value: str) -> str:
    """A name, cut and made printable."""
    cut = value[:_NAME_LIMIT] + ("..." if len(value) > _NAME_LIMIT else "")
    return "".join(character if character.isprintable() else "?" for character in cut)


def boolean(body: Mapping[str, Any], name: str, where: str = "") -> bool:
    """A boolean, False if it is absent or null."""
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise invalid(where + name, f"is {shown(value)}; allowed: true or false")
    return value


def integer(body: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    """An integer from low to high, or None if it is absent or null."""
    value = body.get(name)
    if value is None:
        return None
    # JSON has one kind of number: 16.0 is 16, as for OpenAI.
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise invalid(name, f"is {shown(value)}; allowed: an integer from {low} to {high}")
    return value


def number(body: Mapping[str, Any], name: str, low: float, high: float, *, above: bool = False) -> float | None:
    """A number from low (exclusive with ``above``) to high, or None if it is absent or null."""
    value = body.get(name)
    if value is None:
        return None
    fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    if not fits or (above and value == low):
        bounds = f"above {low:g} up to {high:g}" if above else f"from {low:g} to {high:g}"
        raise invalid(name, f"is {shown(value)}; allowed: a number {bounds}")
    return float(value)


@dataclass(frozen=True, slots=True)
class _Refused:
    """A field that may only have values that change nothing."""

    neutral: Callable[[Any], bool]
    allowed: str


def _same(*values: object) -> Callable[[Any], bool]:
    """Equal as JSON: 0 and 0.0 are, 0 and false are not."""
    return lambda found: any(isinstance(found, bool) == isinstance(value, bool) and found == value for value in values)


_ABSENT = _Refused(lambda _: False, "leaving it out, or null")
_FALSE = _Refused(_same(False), "false")
_ONE = _Refused(_same(1), "1")
_ZERO = _Refused(_same(0), "0")
_NONE = _Refused(_same("none"), '"none"')
_EMPTY_OBJECT = _Refused(_same({}), "{}")
_EMPTY_ARRAY = _Refused(_same([]), "[]")

_REFUSED_BOTH: Mapping[str, _Refused] = MappingProxyType(
    {"n": _ONE, "frequency_penalty": _ZERO, "presence_penalty": _ZERO, "logit_bias": _EMPTY_OBJECT}
)

REFUSED_COMPLETION: Mapping[str, _Refused] = MappingProxyType(
    {**_REFUSED_BOTH, "best_of": _ONE, "echo": _FALSE, "logprobs": _ABSENT, "suffix": _Refused(_same(""), '""')}
)
REFUSED_CHAT: Mapping[str, _Refused] = MappingProxyType(
    {
        **_REFUSED_BOTH,
        "logprobs": _FALSE,
        "top_logprobs": _ABSENT,
        "tools": _EMPTY_ARRAY,
        "tool_choice": _NONE,
        "parallel_tool_calls": _ABSENT,
        "functions": _EMPTY_ARRAY,
        "function_call": _NONE,
        "response_format": _Refused(_same({"type": "text"}), '{"type": "text"}'),
        "modalities": _Refused(_same(["text"]), '["text"]'),
        "audio": _ABSENT,
        "prediction": _ABSENT,
        "store": _FALSE,
        "metadata": _EMPTY_OBJECT,
        "moderation": _ABSENT,
        "reasoning_effort": _ABSENT,
        "verbosity": _ABSENT,
        "service_tier": _Refused(_same("auto", "default"), '"auto" or "default"'),
        "web_search_options": _ABSENT,
        "prompt_cache_options": _ABSENT,
        "prompt_cache_retention": _ABSENT,
    }
)


def refuse(body: Mapping[str, Any], table: Mapping[str, _Refused]) -> None:
    """Raise for a field that is known and cannot be served at its value."""
    for name, rule in table.items():
        value = body.get(name)
        if value is not None and not rule.neutral(value):
            allowed = rule.allowed if rule is _ABSENT else f"{rule.allowed}, or leaving it out"
            raise unsupported(name, shown(value), allowed)


def refuse_unknown(body: Mapping[str, Any], known: frozenset[str], where: str = "") -> None:
    """Raise for a field that the API does not have, as OpenAI's does."""
    for name in body:
        if name not in known:
            # A name that long is no misspelt field; it may be anything.
            said = where + (name_of(name) if len(name) <= _NAME_LIMIT else "(a long name)")
            raise ApiError(400, f"Unrecognized request argument supplied: {said}", code="unknown_parameter", param=said)
