"""Checks of single fields of a request's JSON body.

Messages show only values that cannot be prompt text: numbers, booleans, null and names (a model, a
role). Other values are described by their kind.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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


# Fields that are accepted only with these values, which have no effect, or absent.
_REFUSED_BOTH: Mapping[str, Sequence[object]] = MappingProxyType(
    {"n": [1], "frequency_penalty": [0], "presence_penalty": [0], "logit_bias": [{}]}
)
REFUSED_COMPLETION: Mapping[str, Sequence[object]] = MappingProxyType(
    {**_REFUSED_BOTH, "best_of": [1], "echo": [False], "logprobs": [], "suffix": [""]}
)
REFUSED_CHAT: Mapping[str, Sequence[object]] = MappingProxyType(
    {
        **_REFUSED_BOTH,
        "logprobs": [False],
        "top_logprobs": [],
        "tools": [[]],
        "tool_choice": ["none"],
        "parallel_tool_calls": [],
        "functions": [[]],
        "function_call": ["none"],
        "response_format": [{"type": "text"}],
        "modalities": [["text"]],
        "audio": [],
        "prediction": [],
        "store": [False],
        "metadata": [{}],
        "moderation": [],
        "reasoning_effort": [],
        "verbosity": [],
        "service_tier": ["auto", "default"],
        "web_search_options": [],
        "prompt_cache_options": [],
        "prompt_cache_retention": [],
    }
)


def refuse(body: Mapping[str, Any], table: Mapping[str, Sequence[object]]) -> None:
    """Raise for a known field whose value cannot be served."""
    for name, neutral in table.items():
        value = body.get(name)
        # As in JSON, 0 equals 0.0, but not false.
        if value is None or any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral):
            continue
        wanted = f"{' or '.join(map(json.dumps, neutral))} or absent" if neutral else "absent or null"
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
