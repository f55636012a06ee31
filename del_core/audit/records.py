"""JSON values from frozen dataclasses and back, by the names of their fields.

A field may carry metadata: ``FLAT`` writes the members of its value into the object of the record
itself, ``OMITTED`` leaves the member out where the field has its default. A class with methods
``to_json`` and ``from_json`` of its own is converted by them.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from typing import Any, TypeVar

FLAT: Mapping[str, bool] = {"flat": True}
OMITTED: Mapping[str, bool] = {"omitted": True}

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Return ``value`` as JSON: records and mappings become objects, tuples become arrays."""
    if hasattr(value, "to_json"):
        return value.to_json()
    if is_dataclass(value):
        return fields_to_json(value)
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    return [to_json(item) for item in value] if isinstance(value, tuple) else value


def fields_to_json(record: Any) -> dict[str, Any]:
    """Return the object of a record by its fields, without its own ``to_json``."""
    members: dict[str, Any] = {}
    for item in fields(record):
        value = getattr(record, item.name)
        if "omitted" in item.metadata and value == item.default:
            continue
        members |= to_json(value) if "flat" in item.metadata else {item.name: to_json(value)}
    return members


def rounded(value: Any, digits: int) -> Any:
    """Return a record, tuple or number in which every float is rounded."""
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{item.name: rounded(getattr(value, item.name), digits) for item in fields(value)})
    if isinstance(value, tuple):
        return tuple(rounded(item, digits) for item in value)
    return round(value, digits) if isinstance(value, float) else value


def from_json(kind: type[T], value: Any, name: str = "") -> T:
    """Return a value of class ``kind`` from its JSON; unknown members are ignored.

    Raises:
        ValueError: a member is missing or has the wrong form. The message names it by its path, in
            which ``name`` is the path of ``value``.
    """
    return typing.cast(T, _read(kind, value, name))


def fields_from_json(kind: type[T], value: Any, name: str = "") -> T:
    """Return a record from an object by its fields, without its own ``from_json``."""
    members = _checked(value, dict, name)
    return kind(**{item.name: _member(item, hint, members, name) for item, hint in _hints(kind)})


def _hints(kind: type[Any]) -> list[tuple[Field[Any], Any]]:
    hints = typing.get_type_hints(kind)
    return [(item, hints[item.name]) for item in fields(kind)]


def _member(item: Field[Any], hint: Any, members: dict[str, Any], name: str) -> Any:
    path = f"{name}.{item.name}".lstrip(".")
    if "flat" in item.metadata:
        if "omitted" in item.metadata and not any(inner.name in members for inner, _ in _hints(_value_type(hint))):
            return item.default
        return _read(hint, members, name)
    if item.name not in members:
        if item.default is MISSING:
            raise ValueError(f"{path} must be present")
        return item.default
    return _read(hint, members[item.name], path)


def _value_type(hint: Any) -> Any:
    """Return the one type of an optional hint beside None."""
    if isinstance(hint, types.UnionType):
        return next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return hint


def _read(hint: Any, value: Any, name: str) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = _value_type(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        items = _checked(value, list, name)
        kinds = [arguments[0]] * len(items) if arguments[-1] is Ellipsis else arguments
        if len(items) != len(kinds):
            raise ValueError(f"{name} must be an array of {len(kinds)} elements, got {len(items)}")
        return tuple(
            _read(kind, item, f"{name}[{at}]") for at, (kind, item) in enumerate(zip(kinds, items, strict=True))
        )
    if origin is Mapping:
        members = _checked(value, dict, name)
        return {arguments[0](key): _read(arguments[1], item, f"{name}.{key}") for key, item in members.items()}
    if hasattr(hint, "from_json"):
        return hint.from_json(value, name)
    if isinstance(hint, type) and is_dataclass(hint):
        return fields_from_json(hint, value, name)
    if hint is Any:
        return value
    return _checked(value, int | float if hint is float else hint, name)


def _checked(value: Any, kind: Any, name: str) -> Any:
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", int: "an integer"}
    raise ValueError(f"{name or 'result'} must be {names.get(kind, 'a number')}, got {type(value).__name__}")
