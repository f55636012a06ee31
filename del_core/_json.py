"""Strict JSON for untrusted input, canonical JSON, and atomic writing of JSON files.

:func:`parse` accepts the JSON of docs/reference/wire-format.md, stricter than RFC 8259. The caller
bounds the size in bytes. Messages show no strings, because a prompt may stand in the wrong
place, except identifiers, which :func:`text` checks, and member names that look like them.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np

from del_core.errors import INVALID_HEADER, INVALID_VALUE, MISSING_FIELD, UNKNOWN_FIELD

_ESCAPE: Final = re.compile(rb"\\.", re.DOTALL)
_STRING: Final = re.compile(rb'"[^"]*"')
_MAX_DIGITS: Final = 32  # longest digit run; 64-bit integers need 20, shortest round-trip floats 24
_LONG_DIGITS: Final = re.compile(rb"[0-9]{%d}" % (_MAX_DIGITS + 1))
_MINUS_ZERO: Final = re.compile(rb"-0(?![.0-9eE])")
_SHOWN_CHARACTERS: Final = 64
_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


class JsonError(ValueError):
    """JSON input that is not acceptable: a stable code, the path of the member, the message."""

    def __init__(self, code: str, field: str, message: str) -> None:
        super().__init__(code, field, message)
        self.code = code
        self.field = field
        self.message = message


def named(key: str) -> str:
    """Return a member's name for a message, or its length if it does not look like a name."""
    return f'"{key}"' if _IDENTIFIER.fullmatch(key) else f"of a name of {len(key)} characters"


def kind(value: object) -> str:
    """Return a value that may be a prompt for a message: numbers, and other types by name."""
    return "a string" if isinstance(value, str) else shown(value)


def shown(value: object) -> str:
    """Return a value for a message: about 64 ASCII characters, containers by their type."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return "an array"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value.bit_length() > 128:  # Python refuses to print integers beyond some size
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, str):
        value = value[: _SHOWN_CHARACTERS + 1]  # before escaping, so that a long string is never escaped whole
    text = ascii(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def parse(data: bytes, *, name: str, max_depth: int) -> Any:
    """Return the value of a JSON text in UTF-8, called ``name`` in errors, or raise JsonError."""

    def refuse(message: str) -> NoReturn:
        raise JsonError(INVALID_HEADER, name, message)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            seen: set[str] = set()
            for key, _ in items:
                if key in seen:
                    refuse(f"must have each member once, got {named(key)} twice in one object")
                seen.add(key)
        return result

    def finite(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            refuse("must have finite numbers, got one beyond the range of a 64-bit float")
        return number

    def constant(_: str) -> NoReturn:
        refuse("must have finite numbers, got NaN or Infinity")

    # Outside strings, brackets are structure and digits are numbers. Both take linear time.
    bare = _STRING.sub(b"", _ESCAPE.sub(b"", data) if b"\\" in data else data)
    symbols = np.frombuffer(bare, dtype=np.uint8)
    steps = np.zeros(symbols.size, dtype=np.int8)
    steps[(symbols == ord("[")) | (symbols == ord("{"))] = 1
    steps[(symbols == ord("]")) | (symbols == ord("}"))] = -1
    depth = int(np.cumsum(steps, dtype=np.int64).max(initial=0))
    if depth > max_depth:
        refuse(f"must be nested at most {max_depth} levels deep, got {depth}")
    if _LONG_DIGITS.search(bare):
        refuse(f"must have numbers of at most {_MAX_DIGITS} digits in a row, got more")
    if _MINUS_ZERO.search(bare):
        refuse("must write the integer zero as 0, got -0")

    problem = ""
    value: Any = None
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=pairs, parse_float=finite, parse_constant=constant)
        if b"\\u" in data:  # only an escape can name an unpaired surrogate
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"must be JSON in UTF-8, got another encoding at byte {error.start}"
    except UnicodeEncodeError:
        problem = "must have strings of Unicode scalar values, got an unpaired surrogate"
    except json.JSONDecodeError as error:
        problem = f"must be one JSON value, got an error at character {error.pos}"
    if problem:
        # Raised here so that no traceback carries the text, which the parser's own errors hold.
        refuse(problem)
    return value


def canonical(value: object) -> bytes:
    """Return canonical JSON in UTF-8: names sorted by code point, no spaces, floats by ``repr``.

    Raises ValueError or TypeError for what has no canonical form.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def write_json_atomic(path: Path, value: object, *, indent: int | None = 2) -> None:
    """Write a JSON file without NaN like :func:`write_atomic`; one process at a time."""
    write_atomic(path, (json.dumps(value, indent=indent, allow_nan=False) + "\n").encode("utf-8"))


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file that is complete before it takes its name."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def invalid(field: str, message: str) -> JsonError:
    """Return the error for one member's value."""
    return JsonError(INVALID_VALUE, field, message)


def members(
    value: object, field: str, *, required: Collection[str] = (), optional: Collection[str] = ()
) -> dict[str, Any]:
    """Return an object with every required member and no others than the optional ones."""
    if not isinstance(value, dict):
        raise invalid(field, f"must be an object, got {kind(value)}")
    prefix = f"{field}." if field else ""
    for key in required:
        if key not in value:
            raise JsonError(MISSING_FIELD, prefix + key, "must be present, got no such member")
    for key in value:
        if key not in required and key not in optional:
            allowed = ", ".join(sorted({*required, *optional}))
            raise JsonError(UNKNOWN_FIELD, field, f"must have no members but {allowed}, got {named(key)}")
    return value


def array(value: object, field: str, *, least: int, most: int) -> list[Any]:
    """Return an array of least..most elements."""
    if not isinstance(value, list):
        raise invalid(field, f"must be an array of {least} to {most} elements, got another type")
    if not least <= len(value) <= most:
        raise invalid(field, f"must have {least} to {most} elements, got {len(value)}")
    return value


def integer(value: object, field: str, low: int, high: int) -> int:
    """Return an integer in low..high; floats and booleans are refused."""
    if type(value) is not int or not low <= value <= high:
        raise invalid(field, f"must be an integer from {low} to {high}, got {kind(value)}")
    return value


def secret_integers(value: object, field: str, high: int, *, least: int, most: int) -> tuple[int, ...]:
    """Return an array of least..most integers in 0..high; no error shows their values."""
    items = array(value, field, least=least, most=most)
    if not items:
        return ()
    if set(map(type, items)) != {int} or min(items) < 0 or max(items) > high:
        position = next(i for i, item in enumerate(items) if type(item) is not int or not 0 <= item <= high)
        raise invalid(f"{field}[{position}]", f"must be an integer from 0 to {high}, got another value")
    return tuple(items)


def number(value: object, field: str, low: float, high: float, *, above: bool = False) -> float:
    """Return a finite number in low..high, or above low with ``above``; booleans are refused."""
    if type(value) is int or type(value) is float:
        assert isinstance(value, int | float)
        if (low < value or (low == value and not above)) and value <= high:
            return float(value) + 0.0  # -0.0 becomes 0.0
    bounds = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
    raise invalid(field, f"must be a number {bounds}, got {kind(value)}")


def boolean(value: object, field: str) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise invalid(field, f"must be true or false, got {kind(value)}")
    return value


def text(value: object, field: str, pattern: re.Pattern[str]) -> str:
    """Return a string that the whole pattern matches."""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise invalid(field, f"must be a string that matches {pattern.pattern}, got {shown(value)}")
    return value
