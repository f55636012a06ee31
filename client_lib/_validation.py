"""Argument checks, and the one grammar of their messages: ``field must be ..., got ...``."""

from __future__ import annotations

import json
import math
import re
from typing import TypeGuard

from client_lib.errors import InvalidRequestError


def must_be(name: str, wanted: str, found: str) -> str:
    """Return the message for a field; ``found`` must not be derived from a prompt."""
    return f"{name} must be {wanted}, got {found}"


def invalid(name: str, wanted: str, found: str) -> InvalidRequestError:
    """Return the error for a field; ``found`` must not be derived from a prompt."""
    return InvalidRequestError(must_be(name, wanted, found), field=name)


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether the value is an integer or a float; booleans are neither."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def has_surrogate(text: str) -> bool:
    """Return whether the text has a lone surrogate, so that it is not valid Unicode."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def check_integer(name: str, value: object, low: int, high: int) -> None:
    """Raise unless the value is an integer from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise invalid(name, f"an integer from {low} to {high}", repr(value))


def check_positive(name: str, value: object, kind: str = "number") -> None:
    """Raise unless the value is a positive, finite number."""
    if not (is_number(value) and 0 < value < math.inf):
        raise invalid(name, f"a positive {kind}", repr(value))


def check_seconds(name: str, value: object) -> None:
    """Raise unless the value is a positive, finite number of seconds or None."""
    if value is not None:
        check_positive(name, value, "number of seconds or None")


def check_share(name: str, value: object) -> None:
    """Raise unless the value is a number between 0 and 1, both excluded."""
    if not (is_number(value) and 0 < value < 1):
        raise invalid(name, "a number between 0 and 1", repr(value))


def check_fingerprint(name: str, value: str) -> None:
    """Raise unless the value is a bundle's fingerprint."""
    if len(value) != 64 or not set(value) <= set("0123456789abcdef"):
        raise invalid(name, "64 hexadecimal digits in lower case", repr(value))


NO_JSON = object()
"""The result of :func:`parse_json` for a text that is no JSON."""


_MAX_CONTAINERS = 100_000  # an empty array takes three bytes as text and sixty as an object
_ESCAPE, _STRING = re.compile(rb"\\.", re.DOTALL), re.compile(rb'"[^"]*"')


def parse_json(data: str | bytes) -> object:
    """Parse strict JSON of finite numbers and at most 100,000 arrays and objects, or ``NO_JSON``.

    No exception, which would carry the whole document along, leaves this.
    """

    def refuse(name: str) -> None:
        raise ValueError(name)

    def finite(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError("beyond the range of a float")
        return number

    try:
        return json.loads(data, parse_constant=refuse, parse_float=finite) if _is_small(data) else NO_JSON
    except (ValueError, RecursionError):
        return NO_JSON


def _is_small(data: str | bytes) -> bool:
    """Return whether a JSON text has few enough arrays and objects; brackets in strings are not."""
    count = data.count("[") + data.count("{") if isinstance(data, str) else data.count(b"[") + data.count(b"{")
    if count <= _MAX_CONTAINERS:
        return True
    encoded = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    bare = _STRING.sub(b"", _ESCAPE.sub(b"", encoded))
    return bare.count(b"[") + bare.count(b"{") <= _MAX_CONTAINERS


def missing_package(name: str, wanted: str, extra: str) -> InvalidRequestError:
    """Return the error for an option that needs a package, with the extra that brings it."""
    return invalid(name, f"{wanted} (pip install 'del-serve[{extra}]')", "no such package")


def check_key(name: str, value: str | None) -> None:
    """Raise unless an API key is None or fits an HTTP header; the message omits the key."""
    if value is not None and not (value and value.isascii() and value.isprintable()):
        raise invalid(name, "a non-empty printable ASCII string or None", "something else")


def json_kind(value: object) -> str:
    """Describe the kind of a JSON value without its contents."""
    if isinstance(value, list):
        return f"an array of {len(value)}"
    names: dict[type, str] = {dict: "an object", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def shown(value: object) -> str:
    """Describe a JSON value for a message: numbers and booleans as they are, the rest by kind."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value:.12g}" if isinstance(value, float) or abs(value) < 1 << 64 else "a number of many digits"
    return json_kind(value)
