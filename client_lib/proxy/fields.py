"""Checks of single fields of a request's JSON body.

Messages show only values that cannot be prompt text: numbers, booleans, null and names (a model, a
role). Other values are described by their kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from client_lib._validation import is_number, shown
from client_lib.errors import printable
from client_lib.proxy.errors import APIError, invalid, unsupported

_NAME_LIMIT = 64


def name_of(value: str) -> str:
    """Cut a name and make it printable."""
    return printable(value[:_NAME_LIMIT] + ("..." if len(value) > _NAME_LIMIT else ""))


def boolean(body: Mapping[str, Any], name: str, where: str = "") -> bool:
    """Return a boolean, False if absent or null."""
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise invalid(where + name, "true or false", shown(value))
    return value


def integer(body: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    """Return an integer from ``low`` to ``high``, or None if absent or null."""
    value = body.get(name)
    if value is None:
        return None
    # JSON has one kind of number: as for OpenAI, 16.0 is 16.
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise invalid(name, f"an integer from {low} to {high}", shown(value))
    return value


def number(body: Mapping[str, Any], name: str, low: float, high: float, *, above: bool = False) -> float | None:
    """Return a number from ``low`` (excluded with ``above``) to ``high``, or None if absent."""
    value = body.get(name)
    if value is None:
        return None
    fits = is_number(value) and low <= value <= high
    if not fits or (above and value == low):
        bounds = f"above {low:g} up to {high:g}" if above else f"from {low:g} to {high:g}"
        raise invalid(name, f"a number {bounds}", shown(value))
    return float(value)


@dataclass(frozen=True, slots=True)
class _Refused:
    """A field that is accepted only with values that have no effect."""

    neutral: Callable[[Any], bool]
    wanted: str


def _same(*values: object) -> Callable[[Any], bool]:
    """Compare as JSON: 0 equals 0.0, but not false."""
    return lambda found: any(isinstance(found, bool) == isinstance(value, bool) and found == value for value in values)


_ABSENT = _Refused(lambda _: False, "absent or null")
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
    """Raise for a known field whose value cannot be served."""
    for name, rule in table.items():
        value = body.get(name)
        if value is not None and not rule.neutral(value):
            wanted = rule.wanted if rule is _ABSENT else f"{rule.wanted} or absent"
            raise unsupported(name, wanted, shown(value))


def refuse_unknown(body: Mapping[str, Any], known: frozenset[str], where: str = "") -> None:
    """Raise for an unknown field, in OpenAI's words."""
    for name in body:
        if name not in known:
            # A very long name is no misspelled field and may be anything.
            shown_name = where + (name_of(name) if len(name) <= _NAME_LIMIT else "(a long name)")
            raise APIError(
                400, f"Unrecognized request argument supplied: {shown_name}", code="unknown_parameter", param=shown_name
            )
